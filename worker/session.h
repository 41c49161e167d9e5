// One stay of a worker with a front: joins it, loads its share of the experts, and forms groups and runs steps until
// the front drains the worker or is lost.
//
// A session is made for one attempt to join and used once. Everything that belongs to one front, such as the stream,
// epochs, the numbers of models and steps in flight, lives and ends with it. Weights outlive it (WorkerBase::kept).
//
// Threads. The thread that calls Run is the step thread: it forms groups, begins steps, and takes up and gives up
// models, one after another. Meanwhile the loader's threads read and pack weights (model_loader.h), and gRPC's threads
// answer pings and announce new epochs. On a device, a completion thread reports the steps that have ended.
#pragma once

#include <memory>
#include <optional>

#include "base/clock.h"
#include "base/status.h"
#include "proto/worker.grpc.pb.h"
#include "worker/control_stream.h"
#include "worker/group_member.h"
#include "worker/inbox.h"
#include "worker/loading/rank_experts.h"
#include "worker/rank_models.h"
#include "worker/rank_steps.h"
#include "worker/worker_base.h"
#include "worker/worker_end.h"

namespace switchyard {

class Session {
 public:
  // `base` outlives the session and has one session at a time.
  static absl::StatusOr<std::unique_ptr<Session>> Create(WorkerBase* base);
  // Ends steps, loads and the stream, in this order, on the step thread. What was loaded is kept.
  ~Session();

  // Runs until the front drains the worker, `stop_fd` becomes readable, or the worker cannot go on. With kNoFront it
  // may join again, in another session. A front that has not welcomed the worker at `welcome_due` is given up.
  WorkerEnd Run(int stop_fd, SteadyTime welcome_due);

  // When the front gave the worker its rank.
  std::optional<SteadyTime> welcomed_at() const { return welcomed_at_; }

 private:
  explicit Session(WorkerBase* base, std::unique_ptr<Inbox> inbox);

  absl::Status OpenStream();
  worker::Hello MakeHello() const;
  void Send(worker::WorkerMessage message);

  // Handles messages and steps until there is a reason to end.
  WorkerEnd Serve(int stop_fd, SteadyTime welcome_due);
  // The next thing that there is to do; nullopt when the session goes on.
  std::optional<WorkerEnd> HandleNext(bool has_link_step);
  WorkerEnd EndedByFront(const absl::Status& status) const;
  absl::Status HandleItem(Inbox::Item item);
  // Handles one message. Sets `drained_` when it is the one to drain.
  absl::Status Handle(worker::FrontMessage message);
  absl::Status Welcome(const worker::Welcome& message);
  // Both report failures to the front. They return an error only if the worker must end.
  absl::Status PrepareGroup(const worker::PrepareGroup& message);
  absl::Status ConnectGroup(const worker::ConnectGroup& message);

  absl::Status CheckDevice() const;
  void OnDeviceLost(const absl::Status& why);
  absl::Status DeviceStatus() const;

  WorkerBase* const base_;
  const std::unique_ptr<Inbox> inbox_;

  mutable Mutex mu_;
  absl::Status device_status_ ABSL_GUARDED_BY(mu_);

  GroupMember group_;
  RankExperts experts_;
  RankSteps steps_;
  std::unique_ptr<worker::WorkerHub::Stub> stub_;

  // Step thread only.
  int rank_ = -1;
  int num_ranks_ = 0;
  bool drained_ = false;
  std::optional<SteadyTime> welcomed_at_;

  // Used by steps and loads, and itself uses the members above. ~Session ends the steps first.
  std::unique_ptr<ControlStream> control_;
  std::unique_ptr<RankModels> models_;
};

}  // namespace switchyard
