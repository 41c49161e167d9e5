// One step on one rank: dispatch, experts and combine, whatever device computes and whatever carries the rows.
//
// The phases are those that moe/experts/expert_engine.h documents; the plan gives every byte count, so nothing is asked
// of the peers. A group of one rank that sends itself every home row exchanges nothing and copies nothing: the experts
// read the home rows and write the output rows in place.
//
// On a device the exchange has a stream of its own, and a step that the plan cuts into chunks (chunked_plan.h) computes
// one while others are on their way. The first chunk is this rank's own rows, which go nowhere: they are read where
// they were gathered for sending, and their sums written where others' come back to. With three chunks the streams hold
//   exchange  d1 d2    r1 r2             d = dispatch, r = return
//   experts   e0    e1 e2    combine     each e after its d, each r after its e, combine after all
//
// When something fails on this rank before its last exchange, the communicator is aborted, for the peers would
// otherwise wait for rows that never come. An error of the exchange itself has ended the communicator already.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/exchange/communicator.h"
#include "moe/experts/expert_engine.h"
#include "moe/link/step_socket.h"
#include "moe/plan/chunked_plan.h"
#include "moe/plan/step_plan.h"

namespace switchyard {

// This rank's share of a step. Views and pointers are the caller's.
struct Step {
  ExpertEngine* engine = nullptr;
  Communicator* communicator = nullptr;
  LayerId layer;  // the engine's own number for it
  int64_t hidden_dim = 0;
  RankPlanView plan;
  // [num_home_rows, D] of the engine's compute type, in host memory.
  ConstMatrixView home_rows;
  MatrixView output;
};

// Whether an engine only enqueues its work.
inline bool IsAsynchronous(const ExpertEngine& engine) { return engine.stream() != nullptr; }

// Keeps memory from step to step. Thread-safety: one thread at a time, except Finish.
class StepRunner {
 public:
  // Begin and Finish. Every rank of the group calls it with its share of the same step. `times` (not null): see Begin.
  absl::Status Run(const Step& step, StepTimes* times);

  // Enqueues the whole step in a lane of the engine. The plan may go afterwards; rows, output and communicator
  // stay until Finish, which must follow even if this fails. On a host engine the step is then done.
  // `times` is what passed on this host: on a device whose work is only enqueued here, the time to enqueue it.
  absl::Status Begin(const Step& step, int lane, StepTimes* times);

  // Waits until the output rows of the step in `lane` are there. Another thread may call it, in the order of Begin.
  static absl::Status Finish(ExpertEngine& engine, Communicator& communicator, int lane);

 private:
  // Output rows in the making.
  struct Sums {
    MatrixView output;                        // where the engine wants them
    std::optional<ConstMatrixView> returned;  // partial sums to be combined there; none when the output is complete
  };
  // Rows of a step, chunk after chunk. `received` and `partial_sums` have room for own rows too, which is only used
  // when the step is in one chunk.
  struct Buffers {
    MatrixView send, received, partial_sums, returned;
  };

  absl::Status Enqueue(const Step& step, int lane, StepTimes* times);
  absl::StatusOr<Sums> ComputeSums(const Step& step, int lane, StepTimes* times);
  absl::Status ExchangeAndCompute(const Step& step, const Buffers& rows, StepTimes* times);
  absl::Status Dispatch(const Step& step, int chunk, const Buffers& rows);
  absl::Status RunExperts(const Step& step, int chunk, const Buffers& rows);
  absl::Status Return(const Step& step, int chunk, const Buffers& rows);
  // A chunk's rows in a buffer laid out for sending, or for receiving.
  MatrixView SendPart(MatrixView rows, int chunk) const;
  MatrixView RecvPart(MatrixView rows, int chunk) const;

  // Kept from step to step for its memory.
  ChunkedPlan chunks_;
  std::vector<size_t> send_bytes_, recv_bytes_;  // by rank
};

}  // namespace switchyard
