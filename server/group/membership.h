// Who is in the worker group, which models its workers have, and under which epoch it serves: a state machine without
// threads or I/O of its own.
//
//   absent → loading → ready          per rank, as its worker joins and loads the models that are needed
//   waiting → preparing → connecting → serving      for the group, once all ranks are ready
//
// Every formation has a new epoch. Losing a worker, a failed step or a failed formation puts the group back to waiting;
// it forms again when all ranks are ready, with whoever holds them then. Survivors stay loaded. A worker that stops
// answering pings is given up like one that died.
//
// Models come and go while the group serves. One that is added is wanted of every rank; once all have it, it is
// *needed* like those of the start: the group does not form without it. What cannot be loaded on one rank is undone on
// the others. A rank that joins is told all models, the needed ones first. One that cannot load a needed model is given
// up, unless a later model of that name is there or being added, or nobody can ask for the model any more: then the
// group does without the old one, whose files are likely to be gone.
//
// Thread-compatible: the Group's thread owns it. Time is passed in.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/logging.h"
#include "base/model_id.h"
#include "base/status.h"
#include "proto/worker.pb.h"
#include "server/links/worker_channel.h"

namespace switchyard {

// A model as the group knows it.
struct GroupModel {
  ModelId id;
  std::string name;
  std::vector<worker::ModelShare> shares;  // by rank
  // Chooses the compute type among those that a worker's engine has; an error when there is none for this model. Asked
  // for every worker, last of all, so that its answer may settle things.
  std::function<absl::StatusOr<std::string>(const std::vector<std::string>& available)> choose_compute_dtype;
};

// How far a rank is with a model.
struct RankLoad {
  enum class State { kAbsent, kLoading, kLoaded };
  State state = State::kAbsent;
  bool has_reported = false;
  // Of its experts in the compute type, as its worker last reported.
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};

struct ModelLoad {
  ModelId id;
  std::string name;
  std::vector<RankLoad> ranks;
};

struct MembershipOptions {
  int num_ranks = 1;
  bool local = false;  // workers are started by this front and know their rank
  std::string token;   // what a worker must bring
  std::string version;
  std::string build;
  // Told of every model while a rank loads one, and once more when the last is done.
  std::function<void(const std::vector<ModelLoad>& models, SteadyTime now)> show_load =
      [](const std::vector<ModelLoad>&, SteadyTime) {};
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
  // A rank cannot load a model that the group does not form without.
  virtual void OnLoadFailed(int rank, const absl::Status& why) = 0;
  // Every rank has a model that was added: it is needed from now on.
  virtual void OnModelLoaded(ModelId id) = 0;
  // A model that was added could not be loaded everywhere, and is given up.
  virtual void OnModelFailed(ModelId id, const absl::Status& why) = 0;
  // A rank cannot load a needed model, and a later one of its name is there or being added, or it was released: the
  // group does without the old one from now on. It is to be removed, too.
  virtual void OnModelAbandoned(ModelId id, const absl::Status& why) = 0;
  // No worker has anything of a removed model.
  virtual void OnModelGone(ModelId id) = 0;
};

class Membership {
 public:
  enum class RankState { kAbsent, kLoading, kReady };
  enum class Phase { kWaiting, kPreparing, kConnecting, kServing };

  // A model on one rank.
  struct Part {
    enum class State { kLoading, kLoaded, kUnloading };
    State state = State::kLoading;
    bool has_reported = false;
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;
    int64_t weight_bytes = 0;
  };

  struct Rank {
    RankState state = RankState::kAbsent;
    std::shared_ptr<WorkerChannel> channel;
    worker::Hello hello;
    std::map<ModelId, Part> parts;
    int joins = 0;
    SteadyTime last_heard;
    std::optional<std::string> address;  // of the epoch being formed
    bool connected = false;              // to the others, in the epoch being formed

    int64_t weight_bytes() const;
    // How much of what it is to hold it holds; 1 while it is to hold nothing.
    double load_fraction() const;
  };

  Membership(MembershipOptions options, MembershipListener* listener);

  // The handshake. On success the worker has a rank and is sent its Welcome; otherwise the reason it is refused for.
  absl::StatusOr<int> Join(std::shared_ptr<WorkerChannel> channel, const worker::Hello& hello, SteadyTime now);
  void OnMessage(const WorkerChannel* channel, const worker::WorkerMessage& message, SteadyTime now);
  void Leave(const WorkerChannel* channel, const std::string& why, SteadyTime now);
  // The process of a local worker ended.
  void LocalWorkerExited(int rank, const std::string& why, SteadyTime now);
  void StepFailed(Epoch epoch, int rank, const std::string& why, SteadyTime now);

  // `is_needed` from the start, or only once every rank has it. Ends with OnModelLoaded or, unless it is needed, with
  // OnModelFailed, perhaps before it returns.
  void AddModel(GroupModel model, bool is_needed, SteadyTime now);
  // Nobody can ask for the model any more: it is needed only for what was asked of it, as long as ranks can have it. It
  // is to be removed, too.
  void ReleaseModel(ModelId id);
  // Of a model that was added, or that failed. Ends with OnModelGone, perhaps before it returns.
  void RemoveModel(ModelId id);

  // Asks every worker to finish. From now on their leaving is as it should be, and nothing forms again.
  void Drain();

  // Pings, gives up the silent, retries formations. Call a few times a second.
  void Tick(SteadyTime now);

  Phase phase() const { return phase_; }
  Epoch epoch() const { return epoch_; }
  const std::vector<Rank>& ranks() const { return ranks_; }

 private:
  struct Model {
    GroupModel what;
    bool is_needed = false;
    bool is_released = false;
  };

  absl::Status CheckHello(const worker::Hello& hello) const;
  absl::StatusOr<int> AssignRank(const worker::Hello& hello) const;
  // Lets every model have a compute type that this worker has. Those that are not needed fail where they cannot.
  absl::Status AgreeWith(const worker::Hello& hello);
  int RankOf(const WorkerChannel* channel) const;

  std::vector<Model>::iterator FindModel(ModelId id);
  static absl::Status Agree(const worker::Hello& hello, GroupModel* model);
  void Welcome(int rank);
  // Makes a rank ready that has everything needed.
  void Refresh(Rank& rank);
  void OnLoaded(int rank, const worker::ModelLoaded& message, SteadyTime now);
  void OnFailed(int rank, const worker::ModelFailed& message, SteadyTime now);
  void OnUnloaded(Rank& rank, ModelId id);
  void OnProgress(Rank& rank, const worker::LoadProgress& message);
  void CheckLoaded(ModelId id);
  void FailModel(ModelId id, const absl::Status& why);
  bool HasSuccessor(const GroupModel& model) const;
  void DropFromNeeds(ModelId id);
  void Discard(ModelId id);
  void CheckGone(ModelId id);
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
  std::vector<Model> models_;    // needed ones, then those being added, in the order in which they came
  std::set<ModelId> departing_;  // removed, and not gone from every rank
  Phase phase_ = Phase::kWaiting;
  Epoch epoch_;
  SteadyTime form_not_before_;  // backoff after a failed formation
  SteadyTime form_deadline_;    // while preparing or connecting
  int64_t num_pings_ = 0;
  bool draining_ = false;
};

}  // namespace switchyard
