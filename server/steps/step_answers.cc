#include "server/steps/step_answers.h"

#include <algorithm>
#include <utility>

#include "base/tensor/convert.h"
#include "server/steps/request_router.h"

namespace switchyard {

StepAnswers::StepAnswers(const StepAnswersOptions& options, std::vector<LinkBuffers*> links,
                         std::shared_ptr<OutputPool> outputs)
    : options_(options), links_(std::move(links)), outputs_(std::move(outputs)), pool_(options.num_threads) {}

std::vector<std::vector<OutputPart>> StepAnswers::CutOutput(const Step& step) {
  std::vector<std::vector<OutputPart>> parts;
  std::shared_ptr<const void> loan;
  int64_t begin = 0;
  for (const Piece& piece : step.batch.pieces) {
    Request& request = *piece.request;
    parts.push_back(CutPiece(step, piece, begin, &loan));
    if (request.ask.return_routing && !request.progress.is_routed) {
      CopyChoices(step.routing, begin, piece.num_rows, piece.begin_row, &request.outcome.routing);
    }
    begin += piece.num_rows;
  }
  if (loan == nullptr) outputs_->Return(step.output, step.id);
  return parts;
}

std::vector<OutputPart> StepAnswers::CutPiece(const Step& step, const Piece& piece, int64_t begin,
                                              std::shared_ptr<const void>* loan) {
  const DType dtype = piece.request->ask.dtype;
  const size_t num_bytes = piece.num_rows * step.layer().spec.hidden_dim * SizeOf(dtype);
  const bool may_stay = dtype == step.layer().on_group.compute_dtype && num_bytes >= options_.min_lent_bytes;
  if (may_stay && *loan == nullptr) *loan = outputs_->Lend(step.output, step.id);
  if (may_stay && *loan != nullptr) return LendPiece(step, piece, begin, *loan);
  return {CopyPiece(step, piece, begin)};
}

std::vector<OutputPart> StepAnswers::LendPiece(const Step& step, const Piece& piece, int64_t begin,
                                               const std::shared_ptr<const void>& loan) const {
  const size_t row_bytes = step.link_row_bytes();
  std::vector<OutputPart> parts;
  ForEachHomeRun(step.plan.home_offsets, begin, piece.num_rows,
                 [&](int rank, int64_t home_row, int64_t step_row, int64_t num_rows) {
                   const std::byte* const rows = links_[rank]->output(step.output) + home_row * row_bytes;
                   parts.push_back({piece.begin_row + step_row - begin, {rows, num_rows * row_bytes}, loan});
                 });
  return parts;
}

OutputPart StepAnswers::CopyPiece(const Step& step, const Piece& piece, int64_t begin) const {
  const int64_t width = step.layer().spec.hidden_dim;
  const DType from = step.layer().on_group.compute_dtype, to = piece.request->ask.dtype;
  const size_t row_bytes = width * SizeOf(to);
  const std::shared_ptr<std::byte[]> copy = std::make_shared_for_overwrite<std::byte[]>(piece.num_rows * row_bytes);
  ForEachHomeRun(step.plan.home_offsets, begin, piece.num_rows,
                 [&](int rank, int64_t home_row, int64_t step_row, int64_t num_rows) {
                   const std::byte* const rows = links_[rank]->output(step.output) + home_row * step.link_row_bytes();
                   ConvertElements(from, rows, to, copy.get() + (step_row - begin) * row_bytes, num_rows * width);
                 });
  return {piece.begin_row, {copy.get(), piece.num_rows * row_bytes}, copy};
}

void StepAnswers::Send(const std::vector<std::shared_ptr<Request>>& finished,
                       const std::function<void(Request&)>& complete) {
  const auto send = [&](int64_t i, int) {
    std::vector<OutputPart>& output = finished[i]->outcome.output;
    std::sort(output.begin(), output.end(),
              [](const OutputPart& one, const OutputPart& other) { return one.begin_row < other.begin_row; });
    complete(*finished[i]);
  };
  const auto num_answers = static_cast<int64_t>(finished.size());
  const bool are_many = options_.num_threads > 1 && finished.size() >= options_.min_shared_answers;
  if (!are_many || pool_is_taken_.exchange(true, std::memory_order_acquire)) {
    for (int64_t i = 0; i < num_answers; ++i) send(i, 0);
    return;
  }
  pool_.Run(num_answers, send);
  pool_is_taken_.store(false, std::memory_order_release);
}

}  // namespace switchyard
