// The front: builds and owns the parts that the RPCs use.
//
//   auto front = *Front::Create(options);     opens and checks the models, listens on the worker port
//   front->StartWorkers();                    when all other ports are open, too
//   front->WaitUntilServing();                waits until the models are loaded and the first group has formed
//   … RPCs call Submit() …
//   front->repository().Load(…)               at any time
//   front->Drain();                           refuses new requests, answers those in flight, ends the workers
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "server/config/options.h"
#include "server/group/group.h"
#include "server/group/membership/load_display.h"
#include "server/group/supervisor.h"
#include "server/group/worker_group.h"
#include "server/group/worker_port.h"
#include "server/models/model_opener.h"
#include "server/models/model_repository.h"
#include "server/observe/metrics.h"
#include "server/observe/request_log.h"
#include "server/observe/tracer.h"
#include "server/requests/admission.h"
#include "server/steps/scheduler.h"

namespace switchyard {

// Thread-safe after Create, except where noted.
class Front final : private ModelHost {
 public:
  static absl::StatusOr<std::unique_ptr<Front>> Create(const ServerOptions& options);
  ~Front() override;

  // Starts the local workers. A port in use is then found before any process has been started.
  absl::Status StartWorkers();
  // Waits until the first group serves, and warms it up. Returns an error when a worker cannot load, a warm-up step
  // fails, or `should_stop` returns true.
  absl::Status WaitUntilServing(const std::function<bool()>& should_stop);

  // Checks the drain state and the budgets, and enqueues the request. On success `request->ask.done` will be called
  // exactly once, after the budget of rows has been released; otherwise it is never called. `num_bytes` is the size of
  // its rows. A request with a timeout ends with DEADLINE_EXCEEDED when the timeout has passed, in whatever stage it
  // is.
  absl::Status Submit(const std::shared_ptr<Request>& request, int64_t num_bytes);
  // Ends a submitted request, because its caller is gone or its deadline has passed.
  void Cancel(const std::shared_ptr<Request>& request);

  // Refuses new requests and changes of models, waits up to the drain timeout for the requests in flight, and ends the
  // workers. Call it once.
  void Drain();

  // Opens files again that others may have moved or replaced, and logs which of those that it reads cannot be used.
  void ReopenFiles();
  // Logs what the front and its workers are doing.
  void LogState() const;

  const ServerOptions& options() const { return options_; }
  std::shared_ptr<const ModelTable> models() const { return repository_->table(); }
  ModelRepository& repository() { return *repository_; }
  Metrics& metrics() { return *metrics_; }
  RequestLog& request_log() { return request_log_; }
  Tracer& tracer() { return *tracer_; }
  GroupInfo group_info() const { return workers_->group().info(); }
  Scheduler::Load load() const { return workers_->scheduler().load(); }
  Admission::Held held() const { return admission_->held(); }

  bool draining() const { return draining_.load(); }
  // "starting", "serving", "recovering" or "draining".
  std::string state() const;
  // Whether a new request would be served now.
  bool ready() const { return state() == "serving"; }

  int num_ranks() const { return num_ranks_; }
  int worker_port() const { return worker_port_->port(); }

 private:
  Front(const ServerOptions& options, std::string worker_token);

  // ModelHost.
  void Load(const std::shared_ptr<ServedModel>& model, std::function<void(absl::Status)> done) override;
  absl::Status WarmUp(const std::shared_ptr<ServedModel>& model,
                      const std::function<absl::Status()>& should_stop) override;
  void Release(const ServedModel& model) override;
  void Unload(const ServedModel& model, std::function<void()> done) override;

  // Called on the group's thread when a rank can no longer load the model.
  void Abandon(ModelId id, const absl::Status& why);

  absl::StatusOr<std::vector<std::shared_ptr<ServedModel>>> OpenModels();
  // Chooses the links' layout for the models, and limits the models' steps to the rows that fit in the links.
  absl::Status LayOutLinks(const std::vector<std::shared_ptr<ServedModel>>& models);
  void CreateRepository(const std::vector<std::shared_ptr<ServedModel>>& models);
  void AddMetrics(const ServedModel& model);
  GroupModel MakeGroupModel(const std::shared_ptr<ServedModel>& model) const;
  SchedulerOptions MakeSchedulerOptions() const;
  GroupOptions MakeGroupOptions();
  SupervisorOptions MakeSupervisorOptions() const;
  absl::Status CreateGroup();
  absl::Status ListenForWorkers();
  // The error with which the start is given up; OK while it goes on.
  absl::Status StartFailure(const std::function<bool()>& should_stop);
  absl::Status WarmUpLayers(const std::vector<std::shared_ptr<ServedLayer>>& layers,
                            const std::function<absl::Status()>& should_stop);

  const ServerOptions options_;
  const std::string worker_token_;  // empty for none
  const int num_ranks_;
  ModelOpener opener_;
  const std::unique_ptr<Metrics> metrics_ = std::make_unique<Metrics>();
  RequestLog request_log_;
  std::unique_ptr<Tracer> tracer_;
  const std::shared_ptr<Admission> admission_;  // shared with answers that gRPC may still be sending
  LinkLayout link_layout_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> served_{false};
  Mutex mu_;
  std::optional<absl::Status> load_failure_ ABSL_GUARDED_BY(mu_);
  // Declared in the order in which they are built. They are destroyed in reverse order, so each ends before the parts
  // that it uses.
  std::unique_ptr<LoadDisplay> load_display_;
  std::unique_ptr<WorkerGroup> workers_;
  std::unique_ptr<ModelRepository> repository_;
  std::unique_ptr<WorkerPort> worker_port_;
  std::unique_ptr<Supervisor> supervisor_;
};

}  // namespace switchyard
