// Who is in the worker group, and under which epoch: a state machine without threads or I/O of its own.
//
//   absent → loading → ready          per rank, as its worker joins and loads
//   waiting → preparing → connecting → serving      for the group, once all ranks are ready
//
// Every formation has a new epoch. Losing a worker, a failed step or a failed formation puts the group back to waiting;
// it forms again when all ranks are ready, with whoever holds them then. Survivors stay loaded. A worker that stops
// answering pings is given up like one that died.
//
// Thread-compatible: the Group's thread owns it. Time is passed in.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe/base/clock.h"
#include "moe/base/ids.h"
#include "moe/base/logging.h"
#include "moe/base/status.h"
#include "proto/worker.pb.h"

namespace switchyard {

// The stream to one worker. Thread-safe.
class WorkerChannel {
 public:
  virtual ~WorkerChannel() = default;
  virtual void Send(worker::FrontMessage message) = 0;
  // Ends the stream; the worker sees `why`.
  virtual void Close(const absl::Status& why) = 0;
};

// How far a rank is with its weights.
struct RankLoad {
  enum class State { kAbsent, kLoading, kLoaded };
  State state = State::kAbsent;
  worker::LoadProgress progress;  // the last that its worker reported
};

struct MembershipOptions {
  int num_ranks = 1;
  bool local = false;  // workers are started by this front and know their rank
  std::string token;   // what a worker must bring
  std::string version;
  std::string build;
  // Whether the models can be computed with what a worker's engine has. Asked last, so that its answer may settle
  // things.
  std::function<absl::Status(const worker::Hello& hello)> check_compute_dtypes = [](const worker::Hello&) {
    return absl::OkStatus();
  };
  std::function<worker::Welcome(int rank)> make_welcome;
  // Told of every rank while any of them loads, and once more when the last is done.
  std::function<void(const std::vector<RankLoad>& ranks, SteadyTime now)> show_load = [](const std::vector<RankLoad>&,
                                                                                         SteadyTime) {};
  std::chrono::milliseconds worker_timeout{2500};
  std::chrono::milliseconds form_timeout{15'000};
  std::chrono::milliseconds form_backoff{100};
};

// Told what happens, from within the calls below.
class MembershipListener {
 public:
  virtual ~MembershipListener() = default;
  virtual void OnGroupFormed(Epoch epoch) = 0;
  virtual void OnGroupLost(Epoch epoch, const std::string& why) = 0;
  // The worker of this rank, process `pid`, is not waited for any longer: end the process if it is ours.
  virtual void OnWorkerGivenUp(int rank, int pid) = 0;
  virtual void OnLoadFailed(int rank, const absl::Status& why) = 0;
};

class Membership {
 public:
  enum class RankState { kAbsent, kLoading, kReady };
  enum class Phase { kWaiting, kPreparing, kConnecting, kServing };

  struct Rank {
    RankState state = RankState::kAbsent;
    std::shared_ptr<WorkerChannel> channel;
    worker::Hello hello;
    int64_t weight_bytes = 0;
    double load_fraction = 0;
    worker::LoadProgress load_progress;
    int joins = 0;
    SteadyTime last_heard;
    std::optional<std::string> address;  // of the epoch being formed
    bool connected = false;              // to the others, in the epoch being formed
  };

  Membership(MembershipOptions options, MembershipListener* listener);

  // The handshake. On success the worker has a rank and is sent its Welcome; otherwise the reason it is refused for.
  absl::StatusOr<int> Join(std::shared_ptr<WorkerChannel> channel, const worker::Hello& hello, SteadyTime now);
  void OnMessage(const WorkerChannel* channel, const worker::WorkerMessage& message, SteadyTime now);
  void Leave(const WorkerChannel* channel, const std::string& why, SteadyTime now);
  // The process of a local worker ended.
  void LocalWorkerExited(int rank, const std::string& why, SteadyTime now);
  void StepFailed(Epoch epoch, int rank, const std::string& why, SteadyTime now);

  // Asks every worker to finish. From now on their leaving is as it should be, and nothing forms again.
  void Drain();

  // Pings, gives up the silent, retries formations. Call a few times a second.
  void Tick(SteadyTime now);

  Phase phase() const { return phase_; }
  Epoch epoch() const { return epoch_; }
  const std::vector<Rank>& ranks() const { return ranks_; }

 private:
  absl::Status CheckHello(const worker::Hello& hello) const;
  absl::StatusOr<int> AssignRank(const worker::Hello& hello) const;
  int RankOf(const WorkerChannel* channel) const;
  void ShowLoad(SteadyTime now) const;

  void TryForm(SteadyTime now);
  void OnAddress(Rank& rank, const worker::GroupAddress& message);
  void OnReady(Rank& rank, const worker::GroupReady& message);
  void Break(const std::string& why, SteadyTime retry_at);
  void EndGroup();
  void Vacate(int rank, const std::string& why, SteadyTime now);
  spdlog::level::level_enum LossLevel() const;
  bool AllOf(const std::function<bool(const Rank&)>& condition) const;

  const MembershipOptions options_;
  MembershipListener* const listener_;
  std::vector<Rank> ranks_;
  Phase phase_ = Phase::kWaiting;
  Epoch epoch_;
  SteadyTime form_not_before_;  // backoff after a failed formation
  SteadyTime form_deadline_;    // while preparing or connecting
  int64_t num_pings_ = 0;
  bool draining_ = false;
};

}  // namespace switchyard
