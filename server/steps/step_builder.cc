#include "server/steps/step_builder.h"

#include <utility>

#include "moe/plan/chunked_plan.h"
#include "moe/plan/plan_codec.h"

namespace switchyard {
namespace {

int64_t NumElements(const ServedLayer& layer, int64_t num_rows) { return num_rows * layer.spec.hidden_dim; }

bool GatesAccept(const ServedLayer& layer, DType dtype) {
  return std::all_of(layer.gates.begin(), layer.gates.end(), [&](const auto& gate) { return gate->Accepts(dtype); });
}

bool AreGatedAlike(const Request& one, const Request& other) {
  return !other.progress.is_routed && one.ask.gate_idx == other.ask.gate_idx && one.ask.top_k == other.ask.top_k;
}

// Rows are read from the wire once. Where the gate cannot use the compute type they go to its fp32 copy as well: gating
// on the caller's own precision keeps a near tie between experts from being decided by the rounding to bf16.
bool GateReadsLink(const Step& step) {
  const DType compute_dtype = step.layer().on_group.compute_dtype;
  if (compute_dtype == DType::kF32) return true;
  const auto is_in_link_type = [&](const Piece& piece) { return piece.request->ask.dtype == compute_dtype; };
  return std::all_of(step.batch.pieces.begin(), step.batch.pieces.end(), is_in_link_type) &&
         GatesAccept(step.layer(), compute_dtype);
}

}  // namespace

StepBuilder::StepBuilder(const StepBuilderOptions& options, std::vector<LinkBuffers*> links, const Clock& clock)
    : options_(options), links_(std::move(links)), clock_(clock), pool_(options.num_threads) {}

absl::Status StepBuilder::Build(Step& step) {
  step.times.started = clock_.Now();
  std::vector<int64_t> home_offsets = HomeOffsets(step.batch.num_rows, static_cast<int>(links_.size()));
  SY_RETURN_IF_ERROR(RouteWholeRequests(step));
  UploadRows(step, home_offsets);
  step.times.uploaded = clock_.Now();
  SY_RETURN_IF_ERROR(GateRows(step, home_offsets));
  step.times.gated = clock_.Now();
  PlanRows(step, std::move(home_offsets));
  step.times.planned = clock_.Now();
  return absl::OkStatus();
}

absl::Status StepBuilder::RouteWholeRequests(const Step& step) {
  for (const Piece& piece : step.batch.pieces) {
    Request& request = *piece.request;
    if (request.IsRoutedWhole() && !request.progress.is_routed) SY_RETURN_IF_ERROR(router_.Route(request));
  }
  return absl::OkStatus();
}

// ---- Upload ---------------------------------------------------------------------------------------------------------

void StepBuilder::UploadRows(Step& step, const std::vector<int64_t>& home_offsets) {
  const ServedLayer& layer = step.layer();
  const DType link_dtype = layer.on_group.compute_dtype;
  const size_t row_bytes = step.link_row_bytes();
  gate_reads_link_ = GateReadsLink(step);
  float* gate_rows = nullptr;
  if (!gate_reads_link_) {
    gate_rows_.EnsureSize(NumElements(layer, step.batch.num_rows) * sizeof(float));
    gate_rows = reinterpret_cast<float*>(gate_rows_.data());
  }
  copy_tasks_.clear();
  int64_t begin = 0;
  for (Piece& piece : step.batch.pieces) {
    ForEachHomeRun(
        home_offsets, begin, piece.num_rows, [&](int rank, int64_t home_row, int64_t step_row, int64_t num_rows) {
          AddCopyTasks(*piece.request, link_dtype, num_rows, links_[rank]->input(step.slot) + home_row * row_bytes,
                       gate_rows == nullptr ? nullptr : gate_rows + NumElements(layer, step_row));
        });
    begin += piece.num_rows;
  }
  RunCopyTasks(step.batch.num_rows * row_bytes);
}

void StepBuilder::AddCopyTasks(Request& request, DType link_dtype, int64_t num_rows, std::byte* link_rows,
                               float* gate_rows) {
  const int64_t width = request.ask.layer->spec.hidden_dim;
  const auto row_bytes = static_cast<int64_t>(width * SizeOf(request.ask.dtype));
  const int64_t task_rows = std::max<int64_t>(1, static_cast<int64_t>(options_.copy_task_bytes) / row_bytes);
  for (int64_t row = 0; row < num_rows; row += task_rows) {
    const int64_t count = std::min(task_rows, num_rows - row);
    copy_tasks_.push_back({&request.progress.rows, request.progress.rows.SkipNext(count * row_bytes), request.ask.dtype,
                           link_dtype, static_cast<size_t>(count * width), link_rows + row * width * SizeOf(link_dtype),
                           gate_rows == nullptr ? nullptr : gate_rows + row * width});
  }
}

void StepBuilder::RunCopyTasks(size_t num_bytes) {
  if (num_bytes < 2 * options_.copy_task_bytes) {
    for (const CopyTask& task : copy_tasks_) task.Run();
    return;
  }
  pool_.Run(static_cast<int64_t>(copy_tasks_.size()), [&](int64_t task, int) { copy_tasks_[task].Run(); });
}

void StepBuilder::CopyTask::Run() const {
  rows->ReadAt(begin, from, num_elements, to, link_rows);
  if (gate_rows != nullptr) {
    rows->ReadAt(begin, from, num_elements, DType::kF32, reinterpret_cast<std::byte*>(gate_rows));
  }
}

// ---- Gate and plan --------------------------------------------------------------------------------------------------

absl::Status StepBuilder::GateRows(Step& step, const std::vector<int64_t>& home_offsets) {
  const std::vector<Piece>& pieces = step.batch.pieces;
  int num_choices = 0;
  for (const Piece& piece : pieces) num_choices = std::max(num_choices, piece.request->ask.num_choices());
  step.routing.Resize(step.batch.num_rows, num_choices);
  int64_t begin = 0;
  for (size_t i = 0; i < pieces.size();) {
    const Request& request = *pieces[i].request;
    int64_t num_rows = pieces[i].num_rows;
    if (request.progress.is_routed) {
      CopyChoices(request.outcome.routing, pieces[i++].begin_row, num_rows, begin, &step.routing);
    } else {
      // Together with the pieces behind it that are gated alike.
      while (++i < pieces.size() && AreGatedAlike(request, *pieces[i].request)) num_rows += pieces[i].num_rows;
      SY_RETURN_IF_ERROR(GateRun(step, home_offsets, request, begin, num_rows));
    }
    begin += num_rows;
  }
  return absl::OkStatus();
}

absl::Status StepBuilder::GateRun(Step& step, const std::vector<int64_t>& home_offsets, const Request& like,
                                  int64_t begin, int64_t num_rows) {
  const ServedLayer& layer = step.layer();
  const int64_t width = layer.spec.hidden_dim;
  Gate& gate = *layer.gates[like.ask.gate_idx];
  if (!gate_reads_link_) {
    const ConstMatrixView rows{gate_rows_.data(), DType::kF32, step.batch.num_rows, width};
    return gate.Route(rows.Rows(begin, num_rows), begin, like.ask.top_k, &step.routing, nullptr);
  }
  absl::Status status;
  ForEachHomeRun(home_offsets, begin, num_rows, [&](int rank, int64_t home_row, int64_t step_row, int64_t run_rows) {
    const ConstMatrixView rows{links_[rank]->input(step.slot), layer.on_group.compute_dtype, home_row + run_rows,
                               width};
    status.Update(gate.Route(rows.Rows(home_row, run_rows), step_row, like.ask.top_k, &step.routing, nullptr));
  });
  return status;
}

void StepBuilder::PlanRows(Step& step, std::vector<int64_t> home_offsets) {
  constexpr int64_t kMinRowsToShare = 1024;
  const auto num_ranks = static_cast<int64_t>(links_.size());
  step.plan = PlanStep(step.routing, step.placement->placement, std::move(home_offsets), &pool_);
  const int num_chunks = ChooseNumChunks(step.crossing_bytes() / num_ranks);
  const auto encode = [&](int64_t rank, int) {
    step.plan.ranks[rank].num_chunks = num_chunks;
    EncodeRankPlan(step.plan.ranks[rank].view(), links_[rank]->plan(step.slot));
  };
  if (step.batch.num_rows >= kMinRowsToShare) return pool_.Run(num_ranks, encode);
  for (int64_t rank = 0; rank < num_ranks; ++rank) encode(rank, 0);
}

}  // namespace switchyard
