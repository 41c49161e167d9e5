// The worker group as the front sees it: membership, links and supervision brought together on one thread.
//
// Everything that happens to the group, from whatever thread it is noticed, is posted to the group's thread and handled
// there in order, so that the state needs no lock. Results of steps over shared memory do not pass through here: the
// link hands them straight to the scheduler. Those over a worker's stream do, for only the group knows the worker's
// rank.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "server/group/membership.h"
#include "server/links/link.h"
#include "server/links/shm_link.h"
#include "server/observe/metrics.h"

namespace switchyard {

class Scheduler;
class Supervisor;

struct GroupOptions {
  MembershipOptions membership;
  std::chrono::milliseconds tick{200};
  std::chrono::microseconds link_spin{0};  // of ShmLink
  // As MembershipListener::OnModelAbandoned.
  std::function<void(ModelId id, const absl::Status& why)> on_model_abandoned = [](ModelId, const absl::Status&) {};
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
  // All pointers outlive the group. `on_first_load_failed` is told when a worker cannot load before the group has ever
  // served: the front then gives up.
  Group(const GroupOptions& options, std::vector<LinkBuffers*> buffers, Scheduler* scheduler, Metrics* metrics,
        std::function<void(const absl::Status&)> on_first_load_failed);
  ~Group() override;

  // Whose local workers these are; null before it starts and from before it ends. Returns once the group's thread
  // knows.
  void SetSupervisor(Supervisor* supervisor);

  // Events. Thread-safe; handled later, in order, on the group's thread.
  void LocalWorkerSpawned(int rank, UniqueFd link_socket);
  void LocalWorkerExited(int rank, const std::string& how);
  void Joined(std::shared_ptr<WorkerChannel> channel, worker::Hello hello);
  void Said(std::shared_ptr<WorkerChannel> channel, worker::WorkerMessage message);
  void Left(std::shared_ptr<WorkerChannel> channel, const std::string& why);
  void StepFailed(Epoch epoch, int rank, const absl::Status& why);

  // Models, handled in the same way. `done` is called on the group's thread, unless the group ends first.
  // One that is needed is one of the start: the group does not form without it, and nothing is told of it.
  void AddNeededModel(GroupModel model);
  // Brings a model to every rank, and makes it needed then. After a failure it is to be removed, too.
  void AddModel(GroupModel model, std::function<void(absl::Status)> done);
  // As Membership::ReleaseModel; comes before RemoveModel.
  void ReleaseModel(ModelId id);
  // Frees what the ranks have of a model. Steps of it are over.
  void RemoveModel(ModelId id, std::function<void()> done);

  // Asks every worker to finish; on the group's thread, waited for.
  void Drain();

  // Thread-safe.
  GroupInfo info() const;
  // Waits until the group serves; false on timeout.
  bool WaitUntilServing(absl::Duration timeout) const;

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

  void Post(std::function<void()> event);
  void PostAndWait(const std::function<void()>& event);
  void Loop();
  void Publish();

  const GroupOptions options_;
  const std::vector<LinkBuffers*> buffers_;
  Scheduler* const scheduler_;
  Metrics* const metrics_;
  const std::function<void(const absl::Status&)> on_first_load_failed_;

  // The group's thread only.
  Supervisor* supervisor_ = nullptr;
  Membership membership_;
  std::vector<std::unique_ptr<ShmLink>> shm_links_;  // by rank; null for workers from elsewhere
  bool served_ = false;
  SteadyTime lost_at_;
  int64_t recoveries_ = 0;
  std::map<ModelId, std::function<void(absl::Status)>> adding_;
  std::map<ModelId, std::function<void()>> removing_;

  mutable Mutex mu_;
  mutable CondVar changed_;
  std::deque<std::function<void()>> events_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  GroupInfo info_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace switchyard
