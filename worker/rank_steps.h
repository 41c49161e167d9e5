// The steps of one session: takes them from the shared-memory link or from the stream, checks them, and runs them on
// this rank's experts. Steps of an old epoch are dropped, because the front replays them under the new epoch.
//
// Thread-safety: the step thread calls everything but Describe. On a device, a completion thread reports the steps that
// have ended (step_pipeline.h).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "base/heartbeat.h"
#include "base/ids.h"
#include "base/status.h"
#include "moe/link/step_socket.h"
#include "proto/worker.pb.h"
#include "worker/group_member.h"
#include "worker/loading/rank_experts.h"
#include "worker/steps/step_pipeline.h"
#include "worker/worker_base.h"

namespace switchyard {

class RankSteps {
 public:
  using SendFn = std::function<void(worker::WorkerMessage)>;

  // All pointers outlive this. `send` sends a message to the front; `on_device_lost` is told when this process cannot
  // compute steps any more. Any thread may call both, until this has ended.
  RankSteps(WorkerBase* base, const RankExperts* experts, GroupMember* group, SendFn send,
            std::function<void(const absl::Status&)> on_device_lost);

  void SetRank(int rank, int num_ranks) {
    rank_ = rank;
    num_ranks_ = num_ranks;
  }
  // Gets ready for the steps of this engine; all engines of a worker are alike.
  void PrepareFor(const ExpertEngine& engine);
  // Waits until every step has been reported. Steps that wait for a peer end once their epoch is over.
  void Drain();

  // The error of a link that is closed, which means that the front is gone.
  absl::Status HandleLinkStep();
  void HandleStreamStep(worker::StepRequest request);

  // Adds how far the threads are that steps need. Any thread may call it.
  void Describe(worker::Pong* pong) const;

 private:
  // Whether a step of this epoch can run. Notes the step for the pongs.
  bool BeginStep(Epoch epoch, StepId step);
  void SendLinkResult(const ResultMessage& result) const;
  bool FitsLink(const StepMessage& step, const RankExperts::Place& place) const;
  // Reports a step that cannot run, and aborts the communicator, because peers may be waiting for the step already.
  void RefuseStep(const absl::Status& why, StepDoneFn done);
  void RunStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
               std::span<std::byte> output, StepDoneFn done);
  absl::StatusOr<RankStep> MakeStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
                                    std::span<std::byte> output) const;

  WorkerBase* const base_;
  const RankExperts* const experts_;
  GroupMember* const group_;
  const SendFn send_;
  const std::function<void(const absl::Status&)> on_device_lost_;
  int rank_ = -1;
  int num_ranks_ = 0;
  Heartbeat completion_heartbeat_;
  std::unique_ptr<StepPipeline> pipeline_;  // made for the first model; destroyed before all above, which steps use
};

}  // namespace switchyard
