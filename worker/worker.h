// One rank of the group: joins the front, loads its share of the experts, and runs steps until it is told to drain.
//
// Threads: Run's own is the step thread, which does everything in order (form the group, begin steps, take up and give
// up models); the loader's reads and packs weights meanwhile (model_loader.h); gRPC's answer pings and announce new
// epochs; on a device, a completion thread reports the steps that have ended (step_pipeline.h).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>

#include "http/http_server.h"
#include "moe/link/shared_memory.h"
#include "moe/link/step_socket.h"
#include "worker/control_stream.h"
#include "worker/device.h"
#include "worker/group_member.h"
#include "worker/inbox.h"
#include "worker/load_report.h"
#include "worker/model_loader.h"
#include "worker/options.h"
#include "worker/shard.h"
#include "worker/step_pipeline.h"
#include "worker/worker_metrics.h"

namespace switchyard {

class Worker {
 public:
  // Validates the options, opens the device, and attaches to the link's memory where there is one.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(const WorkerOptions& options,
                                                        DeviceOpener open_device = OpenDevice);
  ~Worker();

  // OK once drained or once `stop_fd` became readable; otherwise why the worker cannot go on: it was refused, could not
  // load what is needed, or lost the front or its device.
  absl::Status Run(int stop_fd);

 private:
  Worker(const WorkerOptions& options, std::unique_ptr<Device> device);

  absl::Status AttachLink();
  absl::Status StartHttp();
  absl::Status JoinFront();
  absl::StatusOr<worker::Hello> MakeHello() const;

  // Steps until there is a reason to end.
  absl::Status Serve(int stop_fd);
  // Handles one message; sets `drained_` at the end.
  absl::Status Handle(worker::FrontMessage message);
  void Load(std::vector<worker::ModelShare> models);
  void Unload(ModelId id);
  void OnLoadEnded(LoadOutcome outcome);
  void TakeUp(std::unique_ptr<ModelPart> part);
  // Frees what may be null, between steps or on the loader's thread, and sends the answer then.
  void GiveUp(std::unique_ptr<ModelPart> part, const worker::WorkerMessage& answer);
  // Their own failures are told to the front; they return what makes the worker end.
  absl::Status PrepareGroup(Epoch epoch);
  absl::Status ConnectGroup(const worker::ConnectGroup& message);

  // Steps, over either kind of link. An outdated step is dropped: the front replays it under the new epoch.
  absl::Status HandleLinkStep();
  void HandleStreamStep(worker::StepRequest request);
  void SendLinkResult(const ResultMessage& result);
  // Of a step that peers may be waiting for already.
  void RefuseStep(const absl::Status& why, StepDoneFn done);
  void RunStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
               std::span<std::byte> output, StepDoneFn done);
  absl::StatusOr<Step> MakeStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
                                std::span<std::byte> output) const;
  bool IsCurrent(Epoch epoch) const;

  absl::Status CheckDevice() const;
  void OnDeviceLost(const absl::Status& why);
  absl::Status DeviceStatus() const;

  const WorkerOptions options_;
  // Constant after Create. The device may have locked the memory, so it ends first.
  LinkLayout layout_;
  std::optional<SharedMemory> link_memory_;
  UniqueFd link_socket_;
  const std::unique_ptr<Device> device_;

  WorkerMetrics metrics_;
  std::unique_ptr<HttpServer> http_;  // null unless it is asked for
  std::unique_ptr<Inbox> inbox_;
  GroupMember group_;
  std::unique_ptr<worker::WorkerHub::Stub> stub_;

  mutable Mutex mu_;
  absl::Status device_status_ ABSL_GUARDED_BY(mu_);

  // Step thread only.
  int rank_ = -1;
  int num_ranks_ = 0;
  bool drained_ = false;
  std::map<ModelId, SteadyTime> loading_;  // since when
  std::set<ModelId> unwanted_;             // of those that are being loaded
  Shard shard_;
  std::unique_ptr<ControlStream> control_;   // ends before what it uses
  std::unique_ptr<LoadReport> load_report_;  // the loader's thread
  std::unique_ptr<StepPipeline> steps_;      // from the first model on; ends before the above, for steps use all of it
  std::unique_ptr<ModelLoader> loader_;      // ends first
};

}  // namespace switchyard
