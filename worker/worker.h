// One rank of the group: joins the front, loads its share of the experts, and runs steps until it is told to drain.
//
// Threads: Run's own is the step thread, which does everything in order (load, form the group, steps); gRPC's threads
// answer pings and announce new epochs meanwhile.
#pragma once

#include <memory>
#include <optional>

#include "moe/link/shared_memory.h"
#include "moe/link/step_socket.h"
#include "worker/control_stream.h"
#include "worker/group_member.h"
#include "worker/inbox.h"
#include "worker/options.h"
#include "worker/shard.h"

namespace switchyard {

class Worker {
 public:
  // Validates the options and attaches to the link's memory where there is one.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(const WorkerOptions& options);
  ~Worker();

  // OK once drained or once `stop_fd` became readable; otherwise why the worker cannot go on: it was refused, could not
  // load, or lost the front.
  absl::Status Run(int stop_fd);

 private:
  Worker(const WorkerOptions& options, std::string device);

  absl::Status AttachLink();
  absl::Status JoinFront();
  absl::StatusOr<worker::Hello> MakeHello() const;

  // Handles one message; sets `drained_` at the end.
  absl::Status Handle(const worker::FrontMessage& message);
  absl::Status Load(const worker::Welcome& welcome);
  void PrepareGroup(Epoch epoch);
  void ConnectGroup(const worker::ConnectGroup& message);

  // Steps, over either kind of link. An outdated step is dropped: the front replays it under the new epoch.
  absl::Status HandleLinkStep();
  void HandleStreamStep(const worker::StepRequest& request);
  absl::Status RunStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
                       std::span<std::byte> output, StepTimes* times);
  bool IsCurrent(Epoch epoch) const;

  const WorkerOptions options_;
  const std::string device_;
  // Constant after Create.
  LinkLayout layout_;
  std::optional<SharedMemory> link_memory_;
  UniqueFd link_socket_;

  std::unique_ptr<Inbox> inbox_;
  GroupMember group_;
  std::unique_ptr<worker::WorkerHub::Stub> stub_;

  // Step thread only.
  int rank_ = -1;
  int num_ranks_ = 0;
  int64_t max_batch_rows_ = 0;
  bool drained_ = false;
  std::unique_ptr<Shard> shard_;
  std::unique_ptr<ControlStream> control_;  // ends first, for it uses the others
};

}  // namespace switchyard
