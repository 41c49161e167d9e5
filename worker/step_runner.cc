#include "worker/step_runner.h"

#include <string>

#include "moe/base/clock.h"

namespace switchyard {
namespace {

// Bytes for each rank, from offsets in rows.
std::vector<size_t> ByteCounts(std::span<const int32_t> offsets, size_t row_bytes) {
  std::vector<size_t> counts;
  counts.reserve(offsets.size());
  for (size_t peer = 0; peer + 1 < offsets.size(); ++peer) {
    counts.push_back(static_cast<size_t>(offsets[peer + 1] - offsets[peer]) * row_bytes);
  }
  return counts;
}

// Adds the time since it was made, or last read, to a counter.
class LapTimer {
 public:
  void AddTo(int64_t& us) {
    const SteadyTime now = Clock::Real().Now();
    us += MicrosBetween(begin_, now);
    begin_ = now;
  }

 private:
  SteadyTime begin_ = Clock::Real().Now();
};

// "[4, 16] fp32"
std::string ShapeOf(int64_t num_rows, int64_t num_cols, DType dtype) {
  return absl::StrCat("[", num_rows, ", ", num_cols, "] ", std::string(DTypeName(dtype)));
}

absl::Status CheckMatrix(absl::string_view name, ConstMatrixView matrix, int64_t num_rows, int64_t num_cols,
                         DType dtype) {
  if (matrix.num_rows == num_rows && matrix.num_cols == num_cols && matrix.dtype == dtype) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected ", ShapeOf(num_rows, num_cols, dtype), ", got ",
                                                 ShapeOf(matrix.num_rows, matrix.num_cols, matrix.dtype)));
}

}  // namespace

absl::Status StepRunner::Run(LayerId layer, int64_t hidden_dim, const RankPlanView& plan, ConstMatrixView home_rows,
                             MatrixView output, StepTimes* times) {
  *times = {};
  absl::Status shapes = CheckShapes(hidden_dim, plan, home_rows, output);
  const absl::StatusOr<ConstMatrixView> returned =
      shapes.ok() ? ReturnedSums(layer, plan, home_rows, times) : absl::StatusOr<ConstMatrixView>(shapes);
  if (!returned.ok()) {
    communicator_->Abort();
    return returned.status();
  }
  LapTimer timer;
  SY_RETURN_IF_ERROR(engine_->Combine(plan, *returned, output));
  timer.AddTo(times->combine_us);
  return absl::OkStatus();
}

absl::StatusOr<ConstMatrixView> StepRunner::ReturnedSums(LayerId layer, const RankPlanView& plan,
                                                         ConstMatrixView home_rows, StepTimes* times) {
  if (ExchangesNothing(plan)) {
    LapTimer timer;
    SY_ASSIGN_OR_RETURN(const ConstMatrixView sums, ComputePartialSums(layer, plan, home_rows));
    timer.AddTo(times->expert_us);
    return sums;
  }
  LapTimer timer;
  SY_ASSIGN_OR_RETURN(const ConstMatrixView received, Dispatch(plan, home_rows));
  timer.AddTo(times->dispatch_us);
  SY_ASSIGN_OR_RETURN(const ConstMatrixView partial_sums, ComputePartialSums(layer, plan, received));
  timer.AddTo(times->expert_us);
  SY_ASSIGN_OR_RETURN(const ConstMatrixView returned, ReturnSums(plan, partial_sums));
  timer.AddTo(times->combine_us);
  return returned;
}

absl::StatusOr<ConstMatrixView> StepRunner::Dispatch(const RankPlanView& plan, ConstMatrixView home_rows) {
  SY_ASSIGN_OR_RETURN(const MatrixView send,
                      ScratchRows(ExpertEngine::Scratch::kSend, plan.num_send_rows(), home_rows.num_cols));
  SY_RETURN_IF_ERROR(engine_->GatherSendRows(plan, home_rows, send));
  SY_ASSIGN_OR_RETURN(const MatrixView received,
                      ScratchRows(ExpertEngine::Scratch::kReceive, plan.num_recv_rows(), home_rows.num_cols));
  SY_RETURN_IF_ERROR(communicator_->AllToAllV(send.data, ByteCounts(plan.send_offsets, send.row_bytes()), received.data,
                                              ByteCounts(plan.recv_offsets, send.row_bytes()), engine_->stream()));
  return received;
}

absl::StatusOr<ConstMatrixView> StepRunner::ComputePartialSums(LayerId layer, const RankPlanView& plan,
                                                               ConstMatrixView received) {
  SY_ASSIGN_OR_RETURN(const MatrixView partial_sums,
                      ScratchRows(ExpertEngine::Scratch::kPartial, plan.num_recv_rows(), received.num_cols));
  SY_RETURN_IF_ERROR(engine_->RunExperts(layer, plan, received, partial_sums));
  return partial_sums;
}

absl::StatusOr<ConstMatrixView> StepRunner::ReturnSums(const RankPlanView& plan, ConstMatrixView partial_sums) {
  SY_ASSIGN_OR_RETURN(const MatrixView returned,
                      ScratchRows(ExpertEngine::Scratch::kReturned, plan.num_send_rows(), partial_sums.num_cols));
  SY_RETURN_IF_ERROR(communicator_->AllToAllV(partial_sums.data, ByteCounts(plan.recv_offsets, returned.row_bytes()),
                                              returned.data, ByteCounts(plan.send_offsets, returned.row_bytes()),
                                              engine_->stream()));
  return returned;
}

absl::Status StepRunner::CheckShapes(int64_t hidden_dim, const RankPlanView& plan, ConstMatrixView home_rows,
                                     ConstMatrixView output) const {
  if (plan.num_ranks != communicator_->size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the plan is for ", plan.num_ranks, " ranks, the group has ", communicator_->size()));
  }
  const DType dtype = engine_->compute_dtype();
  SY_RETURN_IF_ERROR(CheckMatrix("home rows", home_rows, plan.num_home_rows, hidden_dim, dtype));
  return CheckMatrix("output rows", output, plan.num_home_rows, hidden_dim, dtype);
}

// Send rows are distinct and in order, so as many of them as there are home rows are the home rows.
bool StepRunner::ExchangesNothing(const RankPlanView& plan) const {
  return communicator_->size() == 1 && plan.num_send_rows() == plan.num_home_rows &&
         plan.num_recv_rows() == plan.num_home_rows;
}

absl::StatusOr<MatrixView> StepRunner::ScratchRows(ExpertEngine::Scratch purpose, int64_t num_rows,
                                                   int64_t hidden_dim) {
  MatrixView rows{nullptr, engine_->compute_dtype(), num_rows, hidden_dim};
  SY_ASSIGN_OR_RETURN(rows.data, engine_->ScratchBytes(purpose, rows.size_bytes()));
  return rows;
}

}  // namespace switchyard
