// Runs one step on one rank: dispatch, experts and combine, with any engine and any communicator.
//
// The phases are those of moe/experts/expert_engine.h. The plan gives every byte count, so ranks exchange no counts. A
// group of one rank that sends itself every home row exchanges and copies nothing: the experts read the home rows and
// write the output rows in place.
//
// On a device the exchange has a stream of its own, and a step that the plan cuts into chunks (chunked_plan.h) computes
// one chunk while others are exchanged. The first chunk has this rank's own rows, which are not exchanged: the experts
// read them in the send buffer and write their sums into the buffer of returned sums. The streams of three chunks:
//   exchange  d1 d2    r1 r2             d = dispatch, r = return
//   experts   e0    e1 e2    combine     each e after its d, each r after its e, combine after all
//
// If this rank fails before its last exchange, the communicator is aborted, because the peers would otherwise wait for
// rows that never come. An error of the exchange itself has ended the communicator already.
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

// This rank's share of a step. The caller owns all memory.
struct RankStep {
  ExpertEngine* engine = nullptr;
  Communicator* communicator = nullptr;
  LayerId layer;  // the layer's number in the engine
  int64_t hidden_dim = 0;
  RankPlanView plan;
  // [num_home_rows, D] of the engine's compute type, in host memory.
  ConstMatrixView home_rows;
  MatrixView output;
};

// Whether an engine only enqueues its work (a device engine).
inline bool IsAsynchronous(const ExpertEngine& engine) { return engine.stream() != nullptr; }

// Keeps its memory from step to step. Thread-safety: one thread at a time, except Finish.
class StepRunner {
 public:
  // Calls Begin and Finish. Every rank of the group calls it with its share of the same step. For `times`, see Begin.
  absl::Status Run(const RankStep& step, StepTimes* times);

  // Enqueues the whole step in a lane of the engine; a host engine computes it. The plan may be freed afterwards; rows,
  // output and communicator must stay until Finish, which must follow even if this fails. `times` (not null) gets the
  // host's time for each phase, which on a device is the time to enqueue it.
  absl::Status Begin(const RankStep& step, int lane, StepTimes* times);

  // Waits until the output rows of the step in `lane` are written. Another thread may call it, in the order of Begin.
  static absl::Status Finish(ExpertEngine& engine, Communicator& communicator, int lane);

 private:
  // The state of a step's output before Combine.
  struct Sums {
    MatrixView output;                        // where the engine writes output rows
    std::optional<ConstMatrixView> returned;  // partial sums to combine into `output`; none if it is complete
  };
  // Buffers of a step's rows, chunk after chunk. `received` and `partial_sums` have room for this rank's own rows too,
  // which is used only by steps in one chunk.
  struct Buffers {
    MatrixView send, received, partial_sums, returned;
  };

  absl::Status Enqueue(const RankStep& step, int lane, StepTimes* times);
  absl::StatusOr<Sums> ComputeSums(const RankStep& step, int lane, StepTimes* times);
  absl::Status ExchangeAndCompute(const RankStep& step, const Buffers& rows, StepTimes* times);
  absl::Status Dispatch(const RankStep& step, int chunk, const Buffers& rows);
  absl::Status RunExperts(const RankStep& step, int chunk, const Buffers& rows);
  absl::Status Return(const RankStep& step, int chunk, const Buffers& rows);
  // The rows of `chunk` in a buffer with the layout of the send buffer, or of the receive buffer.
  MatrixView SendPart(MatrixView rows, int chunk) const;
  MatrixView RecvPart(MatrixView rows, int chunk) const;

  // Kept from step to step to reuse their memory.
  ChunkedPlan chunks_;
  std::vector<size_t> send_bytes_, recv_bytes_;  // by rank
};

}  // namespace switchyard
