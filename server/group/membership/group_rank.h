// One rank of the group: who holds it, and which models its worker has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/model_id.h"
#include "proto/worker.pb.h"
#include "server/group/membership/rank_progress.h"
#include "server/links/worker_channel.h"

namespace switchyard {

// Reasons that workers give are cut after so many bytes: room for any honest one.
inline constexpr size_t kMaxReasonBytes = 2000;

enum class RankState { kAbsent, kLoading, kReady };

// A model on one rank.
struct RankModel {
  enum class State { kLoading, kLoaded, kUnloading };
  State state = State::kLoading;
  bool has_reported = false;
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  int64_t weight_bytes = 0;
};

struct GroupRank {
  RankState state = RankState::kAbsent;
  std::shared_ptr<WorkerChannel> channel;  // null while absent
  worker::Hello hello;                     // the worker's, or that of the last worker that held the rank
  std::map<ModelId, RankModel> models;
  int joins = 0;
  int64_t unanswered_pings = 0;
  RankProgress progress;
  // In the epoch that is being formed.
  std::optional<std::string> address;
  bool is_connected = false;  // to the other ranks

  bool is_absent() const { return state == RankState::kAbsent; }
  int64_t weight_bytes() const;
  // How much of its models the rank has loaded, from 0 to 1; 1 when it is to hold none.
  double load_fraction() const;
};

// Rank r is element r.
using GroupRanks = std::vector<GroupRank>;

bool AllRanks(const GroupRanks& ranks, const std::function<bool(const GroupRank&)>& condition);

}  // namespace switchyard
