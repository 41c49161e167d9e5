#include "server/rpc/switchyard_service.h"

#include <cmath>
#include <map>

#include "moe/base/logging.h"
#include "moe/base/version.h"
#include "rpc/grpc_status.h"
#include "server/rpc/forward_codec.h"

namespace switchyard {
namespace {

constexpr double kMaxCapacityFactor = 1e6;

absl::StatusOr<DType> FromWire(int dtype) {
  if (dtype >= v1::DATA_TYPE_FP64 && dtype <= v1::DATA_TYPE_BF16) return static_cast<DType>(dtype);
  return absl::InvalidArgumentError(absl::StrCat(
      "dtype: ", dtype, " is not a type of rows; expected DATA_TYPE_FP64, _FP32, _FP16 or _BF16 (1 to 4)"));
}

v1::DataType ToWire(DType dtype) { return static_cast<v1::DataType>(dtype); }
static_assert(static_cast<int>(DType::kF64) == v1::DATA_TYPE_FP64 &&
              static_cast<int>(DType::kF32) == v1::DATA_TYPE_FP32);
static_assert(static_cast<int>(DType::kF16) == v1::DATA_TYPE_FP16 &&
              static_cast<int>(DType::kBF16) == v1::DATA_TYPE_BF16);

// num_rows × hidden_dim × element size must be the bytes that came.
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

// The gate of a request, and what the caller wants of it.
absl::Status ChooseGate(const DecodedForward& decoded, int64_t max_batch_rows, Request* request) {
  const LayerSpec& spec = request->layer->spec;
  if (decoded.gate_idx < 0 || decoded.gate_idx >= spec.num_gates()) {
    return absl::InvalidArgumentError(absl::StrCat("gate_index: the layer has ", spec.num_gates(),
                                                   " gates, expected 0 to ", spec.num_gates() - 1, ", found ",
                                                   decoded.gate_idx));
  }
  if (decoded.top_k < 0 || decoded.top_k > spec.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("top_k: expected 1 to ", spec.num_experts,
                                                   " experts, or 0 for the gate's own number, found ", decoded.top_k));
  }
  const GateSpec& gate = spec.gate_at(static_cast<int>(decoded.gate_idx));
  if (gate.scoring == Scoring::kSparseMixer && decoded.top_k > gate.top_k) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_k: this gate (sparsemixer) draws ", gate.top_k, " experts at most, found ", decoded.top_k));
  }
  request->gate_idx = static_cast<int>(decoded.gate_idx);
  request->top_k = decoded.top_k > 0 ? static_cast<int>(decoded.top_k) : gate.top_k;
  request->capacity = gate.capacity;
  if (decoded.capacity_factor.has_value()) {
    if (!(std::abs(*decoded.capacity_factor) <= kMaxCapacityFactor)) {
      return absl::InvalidArgumentError(absl::StrCat("capacity_factor: expected a number from ", -kMaxCapacityFactor,
                                                     " to ", kMaxCapacityFactor, ", found ", *decoded.capacity_factor));
    }
    request->capacity.rule = CapacityRule::kTutel;
    request->capacity.factor = *decoded.capacity_factor;
  }
  const int usual = spec.num_choices();
  request->row_cost = (request->num_choices() + usual - 1) / usual;
  if (request->row_cost <= max_batch_rows) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "top_k: ", request->top_k, " is more than steps of --max_batch_rows=", max_batch_rows, " have room for"));
}

void FillStats(const RequestStats& from, v1::ForwardStats* stats) {
  stats->set_num_steps(from.num_steps);
  stats->set_queue_us(from.queue_us);
  stats->set_gate_us(from.gate_us);
  stats->set_plan_us(from.plan_us);
  stats->set_step_us(from.step_us);
  stats->set_rows_crossed(from.rows_crossed);
  stats->set_replays(from.replays);
}

// The caller's x-request-id, for the log; empty when it sent none.
std::string RequestId(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("x-request-id");
  return it == metadata.end() ? "" : std::string(it->second.data(), it->second.size());
}

// One Forward call from arrival to answer. Deletes itself when gRPC is done with it.
class ForwardCall final : public grpc::ServerUnaryReactor {
 public:
  ForwardCall(Front* front, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : front_(front), context_(context), response_(response), request_id_(RequestId(*context)) {}

  void Start(const grpc::ByteBuffer& bytes) {
    const absl::Status status = StartOrFail(bytes);
    if (status.ok()) return;
    front_->metrics().RecordRejection(status.code());
    spdlog::debug("request {} refused: {}", request_id_, status.message());
    if (absl::IsResourceExhausted(status)) {
      context_->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(Admission::kPushbackMs));
    }
    Finish(ToGrpcStatus(status));
  }

 private:
  absl::Status StartOrFail(const grpc::ByteBuffer& bytes) {
    SY_ASSIGN_OR_RETURN(DecodedForward decoded, DecodeForward(bytes));
    SY_ASSIGN_OR_RETURN(ServedLayer* const layer, front_->models().Find(decoded.model, decoded.layer));
    SY_ASSIGN_OR_RETURN(const DType dtype, FromWire(decoded.dtype));
    SY_RETURN_IF_ERROR(CheckRows(decoded, *layer, dtype, front_->options().max_request_bytes));
    const int64_t num_bytes = static_cast<int64_t>(decoded.rows.size_bytes());
    auto request = std::make_shared<Request>();
    request->layer = layer;
    request->dtype = dtype;
    request->num_rows = decoded.num_rows;
    request->return_routing = decoded.return_routing;
    request->return_balance_loss = decoded.return_balance_loss;
    SY_RETURN_IF_ERROR(ChooseGate(decoded, front_->options().max_batch_rows, request.get()));
    request->rows = std::move(decoded.rows);
    auto output = std::make_shared<grpc::Slice>(num_bytes);
    request->output = reinterpret_cast<std::byte*>(const_cast<uint8_t*>(output->begin()));
    request->output_owner = output;
    output_ = std::move(output);
    request->done = [this](absl::Status status) { Answer(status); };
    {
      MutexLock lock(&mu_);
      request_ = request;
    }
    if (absl::Status status = front_->Submit(request, num_bytes); !status.ok()) {
      MutexLock lock(&mu_);
      request_ = nullptr;
      return status;
    }
    return absl::OkStatus();
  }

  void Answer(const absl::Status& status) {
    std::shared_ptr<Request> request;
    {
      MutexLock lock(&mu_);
      request.swap(request_);
    }
    const int64_t total_us = MicrosBetween(request->arrival, Clock::Real().Now());
    front_->metrics().RecordRequest(request->layer->id, status.code(), status.ok() ? request->stats.queue_us : -1,
                                    total_us);
    spdlog::debug("request {}: {} rows of {}.{} in {} us: {}", request_id_, request->num_rows, request->layer->model,
                  request->layer->spec.name, total_us, absl::StatusCodeToString(status.code()));
    if (status.ok()) *response_ = EncodeForward(MakeResponse(*request), *output_);
    Finish(ToGrpcStatus(status));
  }

  static v1::ForwardResponse MakeResponse(const Request& request) {
    v1::ForwardResponse response;
    response.set_dtype(ToWire(request.dtype));
    response.set_num_rows(request.num_rows);
    FillStats(request.stats, response.mutable_stats());
    if (request.return_routing) {
      v1::Routing& routing = *response.mutable_routing();
      routing.set_top_k(request.top_k);
      for (int64_t row = 0; row < request.num_rows; ++row) {
        const int64_t first = row * request.routing.top_k;
        const auto experts = request.routing.expert_idx.begin() + first;
        const auto weights = request.routing.weight.begin() + first;
        routing.mutable_expert_ids()->Add(experts, experts + request.top_k);
        routing.mutable_expert_weights()->Add(weights, weights + request.top_k);
      }
    }
    if (request.return_balance_loss) response.set_balance_loss(request.balance_loss);
    return response;
  }

  void OnCancel() override {
    std::shared_ptr<Request> request;
    {
      MutexLock lock(&mu_);
      request = request_;
    }
    if (request != nullptr) front_->Cancel(request);
  }

  void OnDone() override { delete this; }

  Front* const front_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  const std::string request_id_;
  std::shared_ptr<const grpc::Slice> output_;
  Mutex mu_;
  std::shared_ptr<Request> request_ ABSL_GUARDED_BY(mu_);  // while it is submitted and unanswered
};

grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

void FillRank(int index, const RankInfo& info, int num_experts, v1::Rank* rank) {
  rank->set_rank(index);
  rank->set_state(info.state);
  rank->set_pid(info.pid);
  rank->set_host(info.host);
  rank->set_device(info.device);
  rank->set_link(info.link);
  rank->set_weight_bytes(info.weight_bytes);
  rank->set_num_experts(num_experts);
  rank->set_restarts(info.restarts);
  rank->set_load_fraction(info.load_fraction);
}

int ExpertsOfRank(const ModelTable& models, int rank) {
  size_t total = 0;
  for (const auto& layer : models.layers()) total += layer->placement.experts_of(rank).size();
  return static_cast<int>(total);
}

}  // namespace

grpc::ServerUnaryReactor* SwitchyardService::Forward(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  auto* call = new ForwardCall(front_, context, response);
  call->Start(*request);
  return call;
}

grpc::ServerUnaryReactor* SwitchyardService::ListModels(grpc::CallbackServerContext* context,
                                                        const v1::ListModelsRequest*,
                                                        v1::ListModelsResponse* response) {
  for (const ServedModel& served : front_->models().models()) {
    v1::Model& model = *response->add_models();
    model.set_name(served.name);
    model.set_family(served.spec.family);
    model.set_checkpoint_dtype(ToWire(served.spec.dtype));
    model.set_compute_dtype(ToWire(front_->models().compute_dtype(served)));
    for (const LayerSpec& spec : served.spec.layers) {
      v1::Layer& layer = *model.add_layers();
      layer.set_name(spec.name);
      layer.set_hidden_dim(spec.hidden_dim);
      layer.set_expert_dim(spec.expert_dim);
      layer.set_num_experts(spec.num_experts);
      layer.set_top_k(spec.gate.top_k);
      layer.set_gate(DescribeGate(spec.gate, spec.num_experts));
      layer.set_num_gates(spec.num_gates());
      layer.set_shared_dim(spec.shared_dim);
      layer.set_activation(std::string(ActivationName(spec.expert.activation)));
      layer.set_gated(spec.expert.gated);
    }
  }
  return FinishNow(context);
}

grpc::ServerUnaryReactor* SwitchyardService::GetStatus(grpc::CallbackServerContext* context,
                                                       const v1::GetStatusRequest*, v1::GetStatusResponse* response) {
  const GroupInfo group = front_->group_info();
  const Admission::Held held = front_->held();
  response->set_version(std::string(kVersion));
  response->set_state(front_->state());
  response->set_epoch(group.epoch.value);
  response->set_recoveries(group.recoveries);
  response->set_queued_rows(held.rows);
  response->set_queued_bytes(held.bytes);
  response->set_steps_in_flight(front_->load().steps_in_flight);
  for (size_t rank = 0; rank < group.ranks.size(); ++rank) {
    FillRank(static_cast<int>(rank), group.ranks[rank], ExpertsOfRank(front_->models(), static_cast<int>(rank)),
             response->add_ranks());
  }
  for (const auto& layer : front_->models().layers()) {
    v1::LayerLoad& load = *response->add_layers();
    load.set_model(layer->model);
    load.set_layer(layer->spec.name);
    for (int64_t rows : front_->metrics().RowsPerExpert(layer->id)) load.add_rows_per_expert(rows);
  }
  return FinishNow(context);
}

}  // namespace switchyard
