// One rank of the group: joins the front, loads its share of the experts, and runs steps until it is told to drain.
//
// Threads: Run's own is the step thread, which does everything in order (load, form the group, begin steps); gRPC's
// threads answer pings and announce new epochs meanwhile; on a device, a completion thread reports the steps that have
// ended (step_pipeline.h).
#pragma once

#include <memory>
#include <optional>

#include "http/http_server.h"
#include "moe/link/shared_memory.h"
#include "moe/link/step_socket.h"
#include "worker/control_stream.h"
#include "worker/device.h"
#include "worker/group_member.h"
#include "worker/inbox.h"
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
  // load, or lost the front or its device.
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
  absl::Status Load(const worker::Welcome& welcome);
  // Their own failures are told to the front; they return what makes the worker end.
  absl::Status PrepareGroup(Epoch epoch);
  absl::Status ConnectGroup(const worker::ConnectGroup& message);

  // Steps, over either kind of link. An outdated step is dropped: the front replays it under the new epoch.
  absl::Status HandleLinkStep();
  void HandleStreamStep(worker::StepRequest request);
  void SendLinkResult(const ResultMessage& result);
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
  int64_t max_batch_rows_ = 0;
  bool drained_ = false;
  std::unique_ptr<Shard> shard_;
  std::unique_ptr<ControlStream> control_;  // ends before what it uses
  std::unique_ptr<StepPipeline> steps_;     // ends first, for steps use all of the above
};

}  // namespace switchyard
