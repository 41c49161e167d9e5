#include "server/rpc/switchyard_service.h"

#include "moe/base/version.h"
#include "rpc/grpc_status.h"
#include "server/rpc/forward_codec.h"
#include "server/rpc/forward_request.h"

namespace switchyard {
namespace {

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

void FillStats(const RequestStats& from, v1::ForwardStats* stats) {
  stats->set_num_steps(from.num_steps);
  stats->set_queue_us(from.queue_us);
  stats->set_gate_us(from.gate_us);
  stats->set_plan_us(from.plan_us);
  stats->set_step_us(from.step_us);
  stats->set_rows_crossed(from.rows_crossed);
  stats->set_replays(from.replays);
}

// One Forward call from arrival to answer. Deletes itself when gRPC is done with it.
class ForwardCall final : public grpc::ServerUnaryReactor {
 public:
  ForwardCall(Front* front, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : front_(front), context_(context), response_(response), identity_(IdentifyCall(context)) {}

  void Start(const grpc::ByteBuffer& bytes) {
    const absl::Status status = StartOrFail(bytes);
    if (status.ok()) return;
    RecordRefusal(*front_, layer_, status, identity_);
    AddPushback(status, context_);
    Finish(ToGrpcStatus(status));
  }

 private:
  absl::Status StartOrFail(const grpc::ByteBuffer& bytes) {
    SY_ASSIGN_OR_RETURN(DecodedForward decoded, DecodeForward(bytes));
    SY_ASSIGN_OR_RETURN(layer_, front_->models().Find(decoded.model, decoded.layer));
    SY_ASSIGN_OR_RETURN(const DType dtype, FromWire(decoded.dtype));
    SY_RETURN_IF_ERROR(CheckRows(decoded, *layer_, dtype, front_->options().max_request_bytes));
    const int64_t num_bytes = static_cast<int64_t>(decoded.rows.size_bytes());
    auto request = std::make_shared<Request>();
    request->layer = layer_;
    request->dtype = dtype;
    request->num_rows = decoded.num_rows;
    request->return_routing = decoded.return_routing;
    request->return_balance_loss = decoded.return_balance_loss;
    SY_RETURN_IF_ERROR(ChooseGate({decoded.gate_idx, decoded.top_k, decoded.capacity_factor},
                                  front_->options().max_batch_rows, request.get()));
    request->rows = std::move(decoded.rows);
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
    RecordAnswer(*front_, *request, status, identity_);
    if (status.ok()) *response_ = EncodeForward(MakeResponse(*request), OutputSlices(*request));
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
  const RequestIdentity identity_;
  ServedLayer* layer_ = nullptr;  // once it is known
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
