#include "server/api/forward/forward_call.h"

#include <utility>

#include "server/api/calls/request_checks.h"

namespace switchyard {
namespace {

absl::StatusOr<DType> FromWire(int dtype) {
  if (dtype >= v1::DATA_TYPE_FP64 && dtype <= v1::DATA_TYPE_BF16) return static_cast<DType>(dtype);
  return absl::InvalidArgumentError(absl::StrCat(
      "dtype: ", dtype, " is not a type of rows; expected DATA_TYPE_FP64, _FP32, _FP16 or _BF16 (1 to 4)"));
}

static_assert(static_cast<int>(DType::kF64) == v1::DATA_TYPE_FP64 &&
              static_cast<int>(DType::kF32) == v1::DATA_TYPE_FP32);
static_assert(static_cast<int>(DType::kF16) == v1::DATA_TYPE_FP16 &&
              static_cast<int>(DType::kBF16) == v1::DATA_TYPE_BF16);

// The rows must have exactly num_rows × hidden_dim × element size bytes.
absl::Status CheckRows(const DecodedForward& decoded, const ServedLayer& layer, DType dtype, int64_t max_bytes) {
  if (decoded.num_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("num_rows: expected at least 1, found ", decoded.num_rows));
  }
  const int64_t row_bytes = layer.spec.hidden_dim * static_cast<int64_t>(SizeOf(dtype));
  const int64_t num_bytes = static_cast<int64_t>(decoded.rows.size_bytes());
  if (num_bytes > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("rows: ", num_bytes, " bytes, the limit --max_request_bytes is ", max_bytes));
  }
  if (decoded.num_rows > max_bytes / row_bytes || num_bytes != decoded.num_rows * row_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows: ", num_bytes, " bytes, expected ", decoded.num_rows, " rows × ", layer.spec.hidden_dim, " ",
                     std::string(DTypeName(dtype)), " = ", decoded.num_rows, " × ", row_bytes, " bytes"));
  }
  return absl::OkStatus();
}

void FillStats(const RequestStats& from, v1::ForwardStats* stats) {
  stats->set_num_steps(from.num_steps);
  stats->set_queue_us(from.queue_us);
  stats->set_gate_us(from.gate_us);
  stats->set_plan_us(from.plan_us);
  stats->set_step_us(from.step_us);
  stats->set_rows_crossed(from.rows_crossed);
  stats->set_replays(from.replays);
  stats->set_upload_us(from.upload_us);
}

void FillRouting(const Request& request, v1::Routing* routing) {
  routing->set_top_k(request.ask.top_k);
  for (int64_t row = 0; row < request.ask.num_rows; ++row) {
    const int64_t first = row * request.outcome.routing.top_k;
    const auto experts = request.outcome.routing.expert_idx.begin() + first;
    const auto weights = request.outcome.routing.weight.begin() + first;
    routing->mutable_expert_ids()->Add(experts, experts + request.ask.top_k);
    routing->mutable_expert_weights()->Add(weights, weights + request.ask.top_k);
  }
}

}  // namespace

v1::DataType ToWire(DType dtype) { return static_cast<v1::DataType>(dtype); }

void ForwardCall::Start() {
  std::shared_ptr<ServedLayer> layer;
  absl::StatusOr<std::shared_ptr<Request>> request = MakeRequest(&layer);
  Submit(std::move(request), layer.get());
}

absl::StatusOr<std::shared_ptr<Request>> ForwardCall::MakeRequest(std::shared_ptr<ServedLayer>* layer) {
  SY_RETURN_IF_ERROR(decoded_.status());
  const ServerOptions& options = front().options();
  SY_ASSIGN_OR_RETURN(*layer, front().models()->Find(decoded_->model, decoded_->layer));
  SY_ASSIGN_OR_RETURN(const DType dtype, FromWire(decoded_->dtype));
  SY_RETURN_IF_ERROR(CheckRows(*decoded_, **layer, dtype, options.max_request_bytes));
  if (decoded_->timeout_us < 0) {
    return absl::InvalidArgumentError(absl::StrCat("timeout_us: expected 0 or more, found ", decoded_->timeout_us));
  }
  returns_stats_ = decoded_->return_stats.value_or(returns_stats_);
  auto request = std::make_shared<Request>();
  request->ask.layer = *layer;
  request->ask.dtype = dtype;
  request->ask.num_rows = decoded_->num_rows;
  request->ask.return_routing = decoded_->return_routing;
  request->ask.return_balance_loss = decoded_->return_balance_loss;
  request->ask.timeout_us = decoded_->timeout_us;
  if (id() != 0) request->ask.caller_id = absl::StrCat(id());
  SY_RETURN_IF_ERROR(ChooseGate({decoded_->gate_idx, decoded_->top_k, decoded_->capacity_factor},
                                options.max_batch_rows, request.get()));
  SY_RETURN_IF_ERROR(
      ChooseQueueing({decoded_->priority, decoded_->queue_timeout_us}, "queue_timeout_us", request.get()));
  request->progress.rows = std::move(decoded_->rows);
  return request;
}

void ForwardCall::Refuse(const absl::Status& status) { answer_({.status = status, .id = id()}); }

void ForwardCall::Answer(const absl::Status& status, const std::shared_ptr<Request>& request) {
  Record(*request, status);
  ForwardAnswer answer = {.status = status, .id = id()};
  if (status.ok()) {
    answer.head.set_dtype(ToWire(request->ask.dtype));
    answer.head.set_num_rows(request->ask.num_rows);
    if (returns_stats_) FillStats(request->outcome.stats, answer.head.mutable_stats());
    if (request->ask.return_routing) FillRouting(*request, answer.head.mutable_routing());
    if (request->ask.return_balance_loss) answer.head.set_balance_loss(request->outcome.balance_loss);
    answer.rows = OutputSlices(*request);
  }
  answer_(answer);
}

}  // namespace switchyard
