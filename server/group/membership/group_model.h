// Models as a worker group knows them, and how far its ranks are with loading them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/model_id.h"
#include "base/status.h"
#include "proto/worker.pb.h"

namespace switchyard {

struct GroupModel {
  ModelId id;
  std::string name;
  std::vector<worker::ModelShare> shares;  // by rank
  // Chooses the compute type among those that a worker's engine has. Returns an error when there is none for this
  // model. Called for every worker that joins, after all other checks, so the choice may be kept.
  std::function<absl::StatusOr<std::string>(const std::vector<std::string>& available)> choose_compute_dtype;
  // For messages; may be shorter than the shares' lists of layers.
  std::vector<std::string> layer_names = {};
};

// How far a rank is with a model.
struct RankLoad {
  enum class State { kAbsent, kLoading, kLoaded };
  State state = State::kAbsent;
  bool has_reported = false;
  // Bytes of the rank's experts in the compute type, as its worker last reported.
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};

struct ModelLoad {
  ModelId id;
  std::string name;
  std::vector<RankLoad> ranks;
};

}  // namespace switchyard
