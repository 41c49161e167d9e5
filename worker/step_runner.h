// One step on one rank: dispatch, experts and combine, whatever device computes and whatever carries the rows.
//
// The phases are those that moe/experts/expert_engine.h documents; the plan gives every byte count, so nothing is asked
// of the peers. A group of one rank that sends itself every home row exchanges nothing and copies nothing: the experts
// read the home rows in place.
//
// When something fails on this rank before its last exchange, the communicator is aborted, for the peers would
// otherwise wait for rows that never come. An error of the exchange itself has ended the communicator already.
//
// Thread-safety: one thread at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/base/ids.h"
#include "moe/base/status.h"
#include "moe/exchange/communicator.h"
#include "moe/experts/expert_engine.h"
#include "moe/link/step_socket.h"
#include "moe/plan/step_plan.h"
#include "moe/tensor/tensor.h"

namespace switchyard {

class StepRunner {
 public:
  // Both must outlive the runner.
  StepRunner(ExpertEngine* engine, Communicator* communicator) : engine_(engine), communicator_(communicator) {}

  // Computes `output` [num_home_rows, D] from `home_rows` [num_home_rows, D], both of the engine's compute type and in
  // memory the engine can reach. Every rank of the group calls it with its share of the same step.
  // `times` (not null) is what passed on this host: on a device whose work is only enqueued here, the time to enqueue
  // it.
  absl::Status Run(LayerId layer, int64_t hidden_dim, const RankPlanView& plan, ConstMatrixView home_rows,
                   MatrixView output, StepTimes* times);

 private:
  // Partial sums of this rank's home rows, one per row sent.
  absl::StatusOr<ConstMatrixView> ReturnedSums(LayerId layer, const RankPlanView& plan, ConstMatrixView home_rows,
                                               StepTimes* times);
  absl::StatusOr<ConstMatrixView> Dispatch(const RankPlanView& plan, ConstMatrixView home_rows);
  absl::StatusOr<ConstMatrixView> ComputePartialSums(LayerId layer, const RankPlanView& plan, ConstMatrixView received);
  absl::StatusOr<ConstMatrixView> ReturnSums(const RankPlanView& plan, ConstMatrixView partial_sums);

  absl::Status CheckShapes(int64_t hidden_dim, const RankPlanView& plan, ConstMatrixView home_rows,
                           ConstMatrixView output) const;
  bool ExchangesNothing(const RankPlanView& plan) const;
  absl::StatusOr<MatrixView> ScratchRows(ExpertEngine::Scratch purpose, int64_t num_rows, int64_t hidden_dim);

  ExpertEngine* const engine_;
  Communicator* const communicator_;
};

}  // namespace switchyard
