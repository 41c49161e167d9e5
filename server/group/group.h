// The worker group as the front sees it: membership, links and supervision brought together on one thread.
//
// Everything that happens to the group, from whatever thread it is noticed, is posted to the group's thread and handled
// there in order, so that the state needs no lock. Results of steps do not pass through here: the thread that receives
// one, over shared memory or over a worker's stream, hands it straight to the scheduler.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/logging/line_budget.h"
#include "base/mutex.h"
#include "base/threads.h"
#include "server/group/group_events.h"
#include "server/group/membership/membership.h"
#include "server/links/link.h"
#include "server/links/shm_link.h"
#include "server/observe/metrics.h"

namespace switchyard {

class Scheduler;
class Supervisor;

struct GroupOptions {
  MembershipOptions membership;
  std::chrono::microseconds link_spin{0};  // of ShmLink
  const Clock* clock = &Clock::Real();     // outlives the group
  // With Threads::kNone, the owner does the work of the group's thread (RunDue). No worker has a link of shared memory
  // then, because those links' readers are threads.
  Threads threads = Threads::kOwn;
  // As MembershipListener::OnModelAbandoned.
  std::function<void(ModelId id, const absl::Status& why)> on_model_abandoned = [](ModelId, const absl::Status&) {};
  // Told when a worker cannot load before the group has ever served.
  std::function<void(const absl::Status& why)> on_first_load_failed = [](const absl::Status&) {};
};

// A rank as shown to users.
struct RankInfo {
  std::string state;  // "absent", "loading", "ready", "serving"
  int pid = 0;
  std::string host, device, link;
  int64_t weight_bytes = 0;
  int restarts = 0;
  double load_fraction = 0;
};

struct GroupInfo {
  bool serving = false;
  Epoch epoch;
  int64_t recoveries = 0;
  std::vector<RankInfo> ranks;
};

class Group final : private MembershipListener {
 public:
  // All pointers outlive the group. `events` are this group's alone; others may post to them, too.
  Group(const GroupOptions& options, GroupEvents* events, std::vector<LinkBuffers*> buffers, Scheduler* scheduler,
        Metrics* metrics);
  // Handles no event any more, and ends the links: no result comes after that.
  ~Group() override;

  // Whose local workers these are; null before the supervisor starts and from before it ends. Returns once the group's
  // thread knows.
  void SetSupervisor(Supervisor* supervisor);

  // ---- Events: thread-safe; handled later, in order, on the group's thread

  void LocalWorkerSpawned(int rank, UniqueFd link_socket);
  void LocalWorkerExited(int rank, const std::string& how);
  void Joined(std::shared_ptr<WorkerChannel> channel, worker::Hello hello);
  // Counts a caller at `peer` that may not join, or has not in time, and logs it within a budget. Handled at once.
  void Refused(WorkerRefusal reason, const absl::Status& why, const std::string& peer);
  // Any message but a step's result.
  void Said(std::shared_ptr<WorkerChannel> channel, worker::WorkerMessage message);
  void Left(std::shared_ptr<WorkerChannel> channel, const std::string& why);

  // ---- Results: thread-safe; handled at once, on the calling thread

  // A step's result that came over a worker's stream, with its output rows. It is dropped unless the worker holds a
  // rank of the group that serves.
  void StepDone(const WorkerChannel* channel, const ResultMessage& result, const RowChunks& rows);

  // ---- Models: handled like events. `done` is called on the group's thread, unless the group ends first.

  // Adds a model of the start: the group does not form without it.
  void AddNeededModel(GroupModel model);
  // Brings a model to every rank, and makes it needed then. After a failure it is to be removed, too.
  void AddModel(GroupModel model, std::function<void(absl::Status)> done);
  // As Membership::ReleaseModel; comes before RemoveModel.
  void ReleaseModel(ModelId id);
  // Frees what the ranks have of a model. Steps of it are over.
  void RemoveModel(ModelId id, std::function<void()> done);

  // Asks every worker to finish; on the group's thread, waited for.
  void Drain();

  // Handles the failure of a step that the scheduler has noticed. On the group's thread only.
  void OnStepFailed(Epoch epoch, int rank, const std::string& why);

  // ---- Views: thread-safe

  GroupInfo info() const;
  // Waits until the group serves; returns false when `timeout` passes before.
  bool WaitUntilServing(std::chrono::nanoseconds timeout) const;

  // ---- Without a thread of its own (GroupOptions::threads)

  // When there is something to do, if nothing happens before; in the past when events are queued.
  SteadyTime next_due() const { return events_->empty() ? next_tick_ : SteadyTime::min(); }
  // Handles the queued events, and ticks if that is due.
  void RunDue() { Turn(events_->TakeQueued()); }

 private:
  // MembershipListener, on the group's thread.
  void OnGroupFormed(Epoch epoch) override;
  void OnGroupLost(Epoch epoch, const std::string& why) override;
  void OnWorkerGivenUp(int rank, int pid) override;
  void OnLoadFailed(int rank, const absl::Status& why) override;
  void OnModelLoaded(ModelId id) override;
  void OnModelFailed(ModelId id, const absl::Status& why) override;
  void OnModelAbandoned(ModelId id, const absl::Status& why) override;
  void OnModelGone(ModelId id) override;

  SteadyTime now() const { return options_.clock->Now(); }
  void PostAndWait(const std::function<void()>& event);
  void Loop();
  // Handles these events, and ticks if that is due. Returns whether the group goes on.
  bool Turn(const std::deque<GroupEvents::Event>& events);
  void StartLink(int rank, UniqueFd socket);
  // Tells the supervisor that the rank's worker has joined, if there are both.
  void TellJoined(int rank);
  // Counts the tick against the oldest step in flight. Ticks are counted, not time, because a front that does not run
  // reads no results.
  void CheckOldestStep();
  RankInfo Describe(size_t rank, bool is_serving) const;
  void Publish();

  const GroupOptions options_;
  GroupEvents* const events_;
  const std::vector<LinkBuffers*> buffers_;
  Scheduler* const scheduler_;
  Metrics* const metrics_;

  // The group's thread only.
  Supervisor* supervisor_ = nullptr;
  Membership membership_;
  SteadyTime next_tick_;
  bool served_ = false;
  SteadyTime lost_at_;
  int64_t recoveries_ = 0;
  std::pair<Epoch, StepId> oldest_step_;
  int oldest_step_ticks_ = 0;
  std::map<ModelId, std::function<void(absl::Status)>> adding_;
  std::map<ModelId, std::function<void()>> removing_;

  LineBudget refused_lines_{1};
  mutable Mutex mu_;
  mutable CondVar published_;
  GroupInfo info_ ABSL_GUARDED_BY(mu_);
  // The workers of the group that serves, by rank; empty while none does.
  std::vector<std::shared_ptr<WorkerChannel>> serving_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
  // By rank; null for workers from elsewhere. The group's thread only, until that has ended.
  std::vector<std::unique_ptr<ShmLink>> shm_links_;
};

}  // namespace switchyard
