// Who is in the worker group: which worker holds each rank, whether it still answers, and what follows when it does
// not. A state machine without threads or I/O of its own.
//
//   absent → loading → ready          per rank, as its worker joins and loads the models that are needed
//
// When all ranks are ready the group forms (formation.h); when a worker is lost it breaks, and forms again once all
// ranks are ready, also when other workers hold them by then. Survivors stay loaded. Which models a rank has is in
// models_on_ranks.h.
//
// A worker that joins anew, after it was cut off, gets the rank that it held, if it is free: it has kept that rank's
// weights. Its earlier stream ends then, if the front has not noticed the cut yet.
//
// A worker that stops answering pings is given up like one that died. So is one whose process answers while a thread
// stands still that steps need, and one that owes a result, an address or a ready for too long while the others wait
// for it (rank_progress.h). Pings are counted, not timed: a front that did not run for a while has sent none meanwhile,
// so its absence is never taken for the workers'.
//
// Thread-compatible: the Group's thread owns it. Time is passed in.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/logging/line_budget.h"
#include "base/logging/logging.h"
#include "base/status.h"
#include "proto/worker.pb.h"
#include "server/group/membership/formation.h"
#include "server/group/membership/group_model.h"
#include "server/group/membership/group_rank.h"
#include "server/group/membership/membership_listener.h"
#include "server/group/membership/models_on_ranks.h"

namespace switchyard {

struct MembershipOptions {
  int num_ranks = 1;
  bool local = false;  // workers are started by this front and know their rank
  std::string version;
  std::string build;
  // Called with every model while a rank loads one, and once more when the last one is loaded.
  std::function<void(const std::vector<ModelLoad>& models, SteadyTime now)> show_load =
      [](const std::vector<ModelLoad>&, SteadyTime) {};
  std::chrono::milliseconds ping_interval{200};  // from one Tick to the next
  // A worker that has left so many milliseconds' worth of pings unanswered is given up. A thread of it may stand still
  // for four fifths of that.
  std::chrono::milliseconds worker_timeout{2500};
  FormationOptions formation;
};

// A step that has taken too long.
struct LateStep {
  Epoch epoch;
  StepId id;
  std::string what;        // "step 7 of layer m.3 with 12 rows"
  std::vector<int> owing;  // the ranks that have not sent their results
  std::chrono::milliseconds age{0};
  bool is_very_late = false;  // even a rank that computes is waited for no more
};

class Membership {
 public:
  Membership(MembershipOptions options, MembershipListener* listener);

  // The handshake. On success the worker has a rank and is sent its Welcome; otherwise the status says why the worker
  // is refused.
  absl::StatusOr<int> Join(std::shared_ptr<WorkerChannel> channel, const worker::Hello& hello, SteadyTime now);
  void OnMessage(const WorkerChannel* channel, const worker::WorkerMessage& message, SteadyTime now);
  void Leave(const WorkerChannel* channel, const std::string& why, SteadyTime now);
  // The process of a local worker ended.
  void LocalWorkerExited(int rank, const std::string& why, SteadyTime now);
  void StepFailed(Epoch epoch, int rank, const std::string& why, SteadyTime now);
  // May be called again and again, as long as the step is late.
  void StepIsLate(const LateStep& step, SteadyTime now);

  // Adds a model that `is_needed` from the start, or only once every rank has it. Ends with OnModelLoaded or, unless
  // the model is needed, with OnModelFailed, perhaps before it returns.
  void AddModel(GroupModel model, bool is_needed, SteadyTime now);
  // No caller can ask for the model any more: it is needed only by the requests that it has, as long as ranks can have
  // it. It is to be removed, too.
  void ReleaseModel(ModelId id);
  // Removes a model that was added, or that failed. Ends with OnModelGone, perhaps before it returns.
  void RemoveModel(ModelId id);

  // Asks every worker to finish. From now on workers leave as they should, and no group forms again.
  void Drain();

  // Pings, gives up workers that do not answer, retries formations. Call it every `ping_interval`. A call that comes
  // late means that the front was not running, and is not held against the workers.
  void Tick(SteadyTime now);

  bool is_serving() const { return formation_.phase() == Formation::Phase::kServing; }
  Epoch epoch() const { return formation_.epoch(); }
  const GroupRanks& ranks() const { return ranks_; }

 private:
  absl::Status CheckHello(const worker::Hello& hello) const;
  absl::StatusOr<int> AssignRank(const worker::Hello& hello) const;
  absl::StatusOr<int> AssignAwaitedRank(const worker::Hello& hello) const;
  int RankOf(const WorkerChannel* channel) const;
  void SendWelcome(int rank);
  // Ends the worker's stream with `why`, leaves the rank absent and breaks the group.
  void Vacate(int rank, const absl::Status& why, SteadyTime now);
  // Vacates the rank of a worker that has to leave, or has left, and says so.
  void Dismiss(int rank, const absl::Status& why, SteadyTime now);
  // Dismisses a worker that cannot load what it has to, so that it does not join again.
  void LoadFailed(int rank, const std::string& why, SteadyTime now);
  void Break(const std::string& why, SteadyTime retry_at);
  void GroupFailed(int rank, const worker::GroupFailed& message, SteadyTime now);
  size_t MaxAddressBytes() const;
  // Counts the ping that goes out now against every rank; gives up the ranks that have left too many unanswered, and
  // those of which a thread stands still.
  void PingAll(SteadyTime now);
  void FormationIsLate(SteadyTime now);
  Blame FindBlame(const std::vector<int>& owing, Debt debt, bool blame_working) const;
  void GiveUp(int rank, const std::string& why, SteadyTime now);
  void ShowLoad(SteadyTime now) const { options_.show_load(models_.Loads(), now); }
  spdlog::level::level_enum LossLevel() const;

  const MembershipOptions options_;
  MembershipListener* const listener_;
  GroupRanks ranks_;
  ModelsOnRanks models_;
  Formation formation_;
  int64_t num_pings_ = 0;
  std::optional<SteadyTime> last_tick_;
  bool draining_ = false;
  LineBudgets join_lines_{1}, loss_lines_{1};  // by rank: a worker that comes and goes does not fill the log
};

}  // namespace switchyard
