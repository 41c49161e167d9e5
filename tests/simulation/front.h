// The front of the simulated world: the real WorkerGroup and Admission, put together as server/front does it, and
// driven by events instead of threads. In place of ModelRepository, whose threads wait for each other, it has a table
// that makes the same changes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/group/worker_group.h"
#include "server/observe/metrics.h"
#include "server/requests/admission.h"
#include "tests/simulation/plain_model.h"
#include "tests/simulation/worker.h"

namespace switchyard::simulation {

struct FrontOptions {
  SchedulerOptions scheduler;
  GroupOptions group;
  int num_spare_outputs = 0;
  int64_t max_queued_rows = 1000, max_queued_bytes = 1 << 20;
  ModelShape largest;  // the links have room for its steps
};

// A checkpoint that the front knows. Every load of it finds other weights.
struct Checkpoint {
  std::string name;
  ModelShape shape;
  std::shared_ptr<ServedModel> loaded;   // null while it is not served
  std::shared_ptr<ServedModel> loading;  // null while none is being loaded
};

class Front final : public FrontDoor {
 public:
  Front(Site* site, const FrontOptions& options, std::vector<ModelShape> checkpoints, int num_loaded);
  ~Front() override;

  // ---- Callers

  absl::Status Submit(const std::shared_ptr<Request>& request, int64_t num_bytes);
  void Cancel(const std::shared_ptr<Request>& request);

  // ---- Models

  std::vector<Checkpoint>& checkpoints() { return checkpoints_; }
  // Each returns whether the change was begun. A checkpoint's changes come one after the other.
  bool Load(Checkpoint& checkpoint);
  // Whether workers die while they load the model.
  bool is_deadly(ModelId id) const { return models_.at(id).is_deadly; }
  bool Unload(Checkpoint& checkpoint);
  uint64_t version_of(const ServedModel& model) const { return VersionOf(model.location); }
  bool was_abandoned(ModelId id) const { return models_.at(id).was_abandoned; }

  // ---- Its life

  // Runs `fn` when the front's process runs.
  void Run(std::function<void()> fn);
  // Stops the whole process for a while.
  void Pause() { site_->network->Stop(kFrontHost); }
  void Continue();
  void BeginDrain();
  // Asks the workers to finish.
  void DrainWorkers() { workers_->group().Drain(); }
  // Ends the group and what it holds. Requests that are left are failed.
  void Destroy();

  // ---- What is so

  SteadyTime last_continued() const { return last_continued_; }
  // Whether every rank has had the model at the same time, so that it cannot be read from other files any more.
  bool is_settled(ModelId id) const;
  bool is_serving() const { return is_serving_; }
  bool is_draining() const { return is_draining_; }
  // Nothing of a change of models is left to do.
  bool models_are_settled() const;
  int64_t num_formations() const { return num_formations_; }
  Scheduler::Load load() const { return workers_->scheduler().load(); }
  Admission::Held held() const { return admission_.held(); }
  std::string Describe() const;
  // Models that are still there, although the front has let go of them.
  std::vector<ModelId> LeakedModels() const;

  // FrontDoor.
  void Joined(const std::shared_ptr<Connection>& connection, const worker::Hello& hello) override;
  void Said(const std::shared_ptr<Connection>& connection, worker::WorkerMessage message) override;
  void Left(const std::shared_ptr<Connection>& connection) override;
  void Exited(int local_index) override;

  // Sees to it that the front's threads run when they have something to do. Called after every event.
  void Poke();
  // Lets other threads run in the middle of what one does, where that holds no lock.
  void Interleave();

 private:
  // A thread of the front: an event that comes when the thread has something to do, or a little later.
  struct Thread {
    std::function<SteadyTime()> due;
    std::function<void()> run;
    SteadyTime wakes_for = SteadyTime::max();
    int64_t number = 0;  // of its latest event; earlier ones do nothing
    bool is_running = false;
  };
  struct ModelRecord {
    std::string name;
    std::weak_ptr<ServedModel> model;
    std::vector<LayerId> layers;
    bool is_gone = false, was_abandoned = false, is_deadly = false;
  };

  void Schedule(Thread& thread);
  void RunThread(Thread& thread);
  void SeeGroup();
  std::shared_ptr<ServedModel> Open(const Checkpoint& checkpoint);
  GroupModel MakeGroupModel(const std::shared_ptr<ServedModel>& model) const;
  void EndLoad(Checkpoint& checkpoint, ModelId id, const absl::Status& status);
  void Release(std::shared_ptr<ServedModel> model);
  void Retire(const ServedModel& model);
  void Abandon(ModelId id, const absl::Status& why);
  // Whether a model of the checkpoint is on its way out.
  bool has_departing(const Checkpoint& checkpoint) const;

  Site* const site_;
  const FrontOptions options_;
  Metrics metrics_;
  Admission admission_;
  std::vector<Checkpoint> checkpoints_;
  std::map<ModelId, ModelRecord> models_;
  int64_t num_models_ = 0;
  int32_t num_layers_ = 0;
  std::vector<std::function<void()>> held_;  // while the process is stopped
  bool is_draining_ = false, is_serving_ = false, is_interleaving_ = false;
  SteadyTime last_continued_;
  Epoch epoch_;
  int64_t num_formations_ = 0;
  std::unique_ptr<WorkerGroup> workers_;
  std::vector<Thread> threads_;
};

}  // namespace switchyard::simulation
