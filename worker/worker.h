// One rank of the group: joins the front, loads its share of the experts, and runs steps until the front tells it to
// drain.
//
// Threads. The thread that calls Run is the step thread: it forms groups, begins steps, and takes up and gives up
// models, one after another. Meanwhile the loader's threads read and pack weights (model_loader.h), and gRPC's threads
// answer pings and announce new epochs. On a device, a completion thread reports the steps that have ended
// (step_pipeline.h).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>

#include "base/heartbeat.h"
#include "http/http_server.h"
#include "moe/link/shared_memory.h"
#include "moe/link/step_socket.h"
#include "worker/control_stream.h"
#include "worker/device.h"
#include "worker/group_member.h"
#include "worker/inbox.h"
#include "worker/loading/load_report.h"
#include "worker/loading/model_loader.h"
#include "worker/loading/rank_experts.h"
#include "worker/options.h"
#include "worker/steps/step_pipeline.h"
#include "worker/steps/worker_metrics.h"

namespace switchyard {

class Worker {
 public:
  // Validates the options, opens the device, and attaches to the link's memory if there is a link.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(const WorkerOptions& options,
                                                        DeviceOpener open_device = OpenDevice);
  ~Worker();

  // Runs until the worker is drained or `stop_fd` becomes readable, and then returns OK. Returns an error if the worker
  // cannot go on: it was refused, could not load a model that is needed, or lost the front or its device.
  absl::Status Run(int stop_fd);

 private:
  Worker(const WorkerOptions& options, std::unique_ptr<Device> device);

  absl::Status AttachLink();
  absl::Status StartHttp();
  absl::Status JoinFront();
  worker::Hello MakeHello() const;

  // Handles messages and steps until there is a reason to end.
  absl::Status Serve(int stop_fd);
  absl::Status HandleItem(Inbox::Item item);
  // Handles one message. Sets `drained_` when it is the one to drain.
  absl::Status Handle(worker::FrontMessage message);
  void Load(std::vector<worker::ModelShare> models);
  void Unload(ModelId id);
  void OnLoadEnded(LoadOutcome outcome);
  void TakeUp(std::unique_ptr<ModelPart> part);
  // Frees `part`, which may be null, between steps or on the loader's thread, and then sends `answer`.
  void GiveUp(std::unique_ptr<ModelPart> part, const worker::WorkerMessage& answer);
  // Both report failures to the front. They return an error only if the worker must end.
  absl::Status PrepareGroup(const worker::PrepareGroup& message);
  absl::Status ConnectGroup(const worker::ConnectGroup& message);

  // Handle steps from the shared-memory link or from the stream. They drop steps of an old epoch, which the front
  // replays under the new epoch.
  absl::Status HandleLinkStep();
  void HandleStreamStep(worker::StepRequest request);
  void SendLinkResult(const ResultMessage& result);
  // Reports a step that cannot run, and aborts the communicator, because peers may be waiting for the step already.
  void RefuseStep(const absl::Status& why, StepDoneFn done);
  void RunStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
               std::span<std::byte> output, StepDoneFn done);
  absl::StatusOr<RankStep> MakeStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
                                    std::span<std::byte> output) const;
  // Whether a step of this epoch can run. Notes the step for the pongs.
  bool BeginStep(Epoch epoch, StepId step);
  // Adds how far the threads are that steps need.
  void DescribeThreads(worker::Pong* pong);

  absl::Status CheckDevice() const;
  void OnDeviceLost(const absl::Status& why);
  absl::Status DeviceStatus() const;

  const WorkerOptions options_;
  // Constant after Create. The device is declared after the link's memory, which it may have locked, to be destroyed
  // first.
  LinkLayout layout_;
  std::optional<SharedMemory> link_memory_;
  UniqueFd link_socket_;
  const std::unique_ptr<Device> device_;

  Heartbeat step_heartbeat_, completion_heartbeat_;
  WorkerMetrics metrics_;
  std::unique_ptr<HttpServer> http_;  // null unless options ask for it
  std::unique_ptr<Inbox> inbox_;
  GroupMember group_;
  std::unique_ptr<worker::WorkerHub::Stub> stub_;

  mutable Mutex mu_;
  absl::Status device_status_ ABSL_GUARDED_BY(mu_);

  // Step thread only.
  int rank_ = -1;
  int num_ranks_ = 0;
  bool drained_ = false;
  std::map<ModelId, SteadyTime> loading_;  // when the load was asked for
  std::set<ModelId> unwanted_;             // models in loading_ that the front has unloaded
  RankExperts experts_;
  std::unique_ptr<ControlStream> control_;   // destroyed before the members above, which it uses
  std::unique_ptr<LoadReport> load_report_;  // used by the loader's thread
  std::unique_ptr<StepPipeline> steps_;      // made for the first model; destroyed before all above, which steps use
  std::unique_ptr<ModelLoader> loader_;      // destroyed first
};

}  // namespace switchyard
