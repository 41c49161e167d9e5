#include "worker/steps/step_runner.h"

#include <string>

#include "base/clock.h"

namespace switchyard {
namespace {

// Computes the bytes of each rank's block from offsets in rows.
void CountBytes(std::span<const int32_t> offsets, size_t row_bytes, std::vector<size_t>* counts) {
  counts->clear();
  for (size_t peer = 0; peer + 1 < offsets.size(); ++peer) {
    counts->push_back(static_cast<size_t>(offsets[peer + 1] - offsets[peer]) * row_bytes);
  }
}

// Adds the time since its construction, or since the last AddTo, to a counter.
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

absl::Status CheckShapes(const RankStep& step) {
  const RankPlanView& plan = step.plan;
  if (plan.num_ranks != step.communicator->size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the plan is for ", plan.num_ranks, " ranks, the group has ", step.communicator->size()));
  }
  const DType dtype = step.engine->compute_dtype();
  SY_RETURN_IF_ERROR(CheckMatrix("home rows", step.home_rows, plan.num_home_rows, step.hidden_dim, dtype));
  return CheckMatrix("output rows", step.output, plan.num_home_rows, step.hidden_dim, dtype);
}

// A single rank's send rows are distinct and in order, so if there are as many of them as home rows, they are the home
// rows.
bool ExchangesNothing(const RankStep& step) {
  return step.communicator->size() == 1 && step.plan.num_send_rows() == step.plan.num_home_rows &&
         step.plan.num_recv_rows() == step.plan.num_home_rows;
}

absl::StatusOr<MatrixView> ScratchRows(const RankStep& step, ExpertEngine::Scratch purpose, int64_t num_rows) {
  MatrixView rows{nullptr, step.engine->compute_dtype(), num_rows, step.hidden_dim};
  SY_ASSIGN_OR_RETURN(rows.data, step.engine->ScratchBytes(purpose, rows.size_bytes()));
  return rows;
}

DeviceStream ExchangeStream(const ExpertEngine& engine) {
  return engine.exchange_stream() != nullptr ? engine.exchange_stream() : engine.stream();
}

absl::Status Order(ExpertEngine& engine, DeviceStream earlier, DeviceStream later) {
  return earlier == later ? absl::OkStatus() : engine.Order(earlier, later);
}

}  // namespace

absl::Status StepRunner::Run(const RankStep& step, StepTimes* times) {
  const absl::Status begun = Begin(step, /*lane=*/0, times);
  const absl::Status finished = Finish(*step.engine, *step.communicator, /*lane=*/0);
  return begun.ok() ? finished : begun;
}

absl::Status StepRunner::Begin(const RankStep& step, int lane, StepTimes* times) {
  *times = {};
  absl::Status begun = Enqueue(step, lane, times);
  // After a failure, ends the step without rows, so that Finish waits for the enqueued work, which may read the home
  // rows. The error of EndStep is ignored, because the step has failed already.
  if (!begun.ok()) (void)step.engine->EndStep(lane, ConstMatrixView{}, MatrixView{});
  return begun;
}

absl::Status StepRunner::Enqueue(const RankStep& step, int lane, StepTimes* times) {
  const absl::Status shapes = CheckShapes(step);
  const absl::StatusOr<Sums> sums = shapes.ok() ? ComputeSums(step, lane, times) : absl::StatusOr<Sums>(shapes);
  if (!sums.ok()) {
    step.communicator->Abort();
    return sums.status();
  }
  LapTimer timer;
  if (sums->returned.has_value()) {
    SY_RETURN_IF_ERROR(step.engine->Combine(chunks_.whole(), *sums->returned, sums->output));
  }
  SY_RETURN_IF_ERROR(step.engine->EndStep(lane, sums->output, step.output));
  timer.AddTo(times->combine_us);
  return absl::OkStatus();
}

absl::Status StepRunner::Finish(ExpertEngine& engine, Communicator& communicator, int lane) {
  absl::Status finished = engine.WaitStep(lane);
  // On a device, an exchange whose peer is gone ends too, without having moved its bytes.
  if (finished.ok()) finished = communicator.Health();
  if (!finished.ok()) communicator.Abort();
  return finished;
}

absl::StatusOr<StepRunner::Sums> StepRunner::ComputeSums(const RankStep& step, int lane, StepTimes* times) {
  LapTimer timer;
  ExpertEngine& engine = *step.engine;
  SY_ASSIGN_OR_RETURN(const ConstMatrixView home_rows, engine.BeginStep(lane, step.home_rows));
  SY_ASSIGN_OR_RETURN(const MatrixView output, engine.StepOutput(lane, step.output));
  if (ExchangesNothing(step)) {
    SY_RETURN_IF_ERROR(engine.RunExperts(step.layer, step.plan, home_rows, output));
    timer.AddTo(times->expert_us);
    return Sums{output, std::nullopt};
  }
  chunks_.Split(step.plan, IsAsynchronous(engine) ? step.plan.num_chunks : 1, step.communicator->rank());
  const int64_t num_send_rows = step.plan.num_send_rows(), num_recv_rows = step.plan.num_recv_rows();
  Buffers rows;
  SY_ASSIGN_OR_RETURN(rows.send, ScratchRows(step, ExpertEngine::Scratch::kSend, num_send_rows));
  SY_ASSIGN_OR_RETURN(rows.received, ScratchRows(step, ExpertEngine::Scratch::kReceive, num_recv_rows));
  SY_ASSIGN_OR_RETURN(rows.partial_sums, ScratchRows(step, ExpertEngine::Scratch::kPartial, num_recv_rows));
  SY_ASSIGN_OR_RETURN(rows.returned, ScratchRows(step, ExpertEngine::Scratch::kReturned, num_send_rows));
  SY_RETURN_IF_ERROR(engine.GatherSendRows(chunks_.whole(), home_rows, rows.send));
  timer.AddTo(times->dispatch_us);
  SY_RETURN_IF_ERROR(ExchangeAndCompute(step, rows, times));
  return Sums{output, rows.returned};
}

absl::Status StepRunner::ExchangeAndCompute(const RankStep& step, const Buffers& rows, StepTimes* times) {
  ExpertEngine& engine = *step.engine;
  DeviceStream compute = engine.stream(), exchange = ExchangeStream(engine);
  const int num_chunks = chunks_.num_chunks(), first_exchanged = chunks_.is_own(0) ? 1 : 0;
  LapTimer timer;
  SY_RETURN_IF_ERROR(Order(engine, compute, exchange));
  SY_RETURN_IF_ERROR(Dispatch(step, first_exchanged, rows));
  if (first_exchanged == 0) SY_RETURN_IF_ERROR(Order(engine, exchange, compute));
  timer.AddTo(times->dispatch_us);
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    SY_RETURN_IF_ERROR(RunExperts(step, chunk, rows));
    timer.AddTo(times->expert_us);
    // The next chunk's experts must wait for the exchange's work so far, so this comes before more is enqueued there.
    if (chunk + 1 < num_chunks) SY_RETURN_IF_ERROR(Order(engine, exchange, compute));
    if (chunk + 2 < num_chunks) SY_RETURN_IF_ERROR(Dispatch(step, chunk + 2, rows));
    timer.AddTo(times->dispatch_us);
    if (chunks_.is_own(chunk)) continue;
    SY_RETURN_IF_ERROR(Order(engine, compute, exchange));
    SY_RETURN_IF_ERROR(Return(step, chunk, rows));
    timer.AddTo(times->combine_us);
  }
  return Order(engine, exchange, compute);
}

absl::Status StepRunner::Dispatch(const RankStep& step, int chunk, const Buffers& rows) {
  const RankPlanView& plan = chunks_.chunk(chunk);
  CountBytes(plan.send_offsets, rows.send.row_bytes(), &send_bytes_);
  CountBytes(plan.recv_offsets, rows.send.row_bytes(), &recv_bytes_);
  return step.communicator->AllToAllV(SendPart(rows.send, chunk).data, send_bytes_, RecvPart(rows.received, chunk).data,
                                      recv_bytes_, ExchangeStream(*step.engine));
}

absl::Status StepRunner::RunExperts(const RankStep& step, int chunk, const Buffers& rows) {
  const bool is_own = chunks_.is_own(chunk);
  return step.engine->RunExperts(step.layer, chunks_.chunk(chunk),
                                 is_own ? SendPart(rows.send, chunk) : RecvPart(rows.received, chunk),
                                 is_own ? SendPart(rows.returned, chunk) : RecvPart(rows.partial_sums, chunk));
}

absl::Status StepRunner::Return(const RankStep& step, int chunk, const Buffers& rows) {
  const RankPlanView& plan = chunks_.chunk(chunk);
  CountBytes(plan.recv_offsets, rows.send.row_bytes(), &send_bytes_);
  CountBytes(plan.send_offsets, rows.send.row_bytes(), &recv_bytes_);
  return step.communicator->AllToAllV(RecvPart(rows.partial_sums, chunk).data, send_bytes_,
                                      SendPart(rows.returned, chunk).data, recv_bytes_, ExchangeStream(*step.engine));
}

MatrixView StepRunner::SendPart(MatrixView rows, int chunk) const {
  return rows.Rows(chunks_.first_send_row(chunk), chunks_.chunk(chunk).num_send_rows());
}

MatrixView StepRunner::RecvPart(MatrixView rows, int chunk) const {
  return rows.Rows(chunks_.first_recv_row(chunk), chunks_.chunk(chunk).num_recv_rows());
}

}  // namespace switchyard
