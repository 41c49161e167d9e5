#include "server/api/forward/switchyard_service.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>

#include "base/version.h"
#include "proto/switchyard.grpc.pb.h"
#include "server/api/calls/call_identity.h"
#include "server/api/calls/unary_call.h"
#include "server/api/forward/forward_call.h"
#include "server/api/forward/forward_stream.h"
#include "server/front/front.h"

namespace switchyard {
namespace {

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
  for (const auto& model : models.models()) {
    if (model.loaded == nullptr) continue;
    for (const auto& layer : model.loaded->layers) total += layer->on_group.current_placement().experts_of(rank).size();
  }
  return static_cast<int>(total);
}

// Methods that carry rows are raw, so that protobuf does not copy the rows.
class SwitchyardService final
    : public v1::Switchyard::WithRawCallbackMethod_Forward<
          v1::Switchyard::WithRawCallbackMethod_ForwardStream<v1::Switchyard::WithCallbackMethod_ListModels<
              v1::Switchyard::WithCallbackMethod_GetStatus<v1::Switchyard::Service>>>> {
 public:
  // `front` outlives the server that this service is registered with.
  explicit SwitchyardService(Front* front) : front_(front) {}

  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ForwardStream(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override;

 private:
  Front* const front_;
};

grpc::ServerUnaryReactor* SwitchyardService::Forward(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  auto* unary = new UnaryCall(context);
  const auto answer = [unary, response](const ForwardAnswer& made) {
    if (made.status.ok()) *response = EncodeForward(made.head, made.rows);
    unary->End(made.status);
  };
  ForwardCall::Options options = {
      .identity = std::make_shared<const RequestIdentity>(IdentifyCall(front_->options(), context)),
      .returns_stats = true};
  unary->Start(std::make_shared<ForwardCall>(front_, std::move(options), DecodeForward(*request), answer));
  return unary;
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* SwitchyardService::ForwardStream(
    grpc::CallbackServerContext* context) {
  return NewCallStream(std::make_unique<ForwardProtocol>(front_, IdentifyCall(front_->options(), context)),
                       {.max_bytes = front_->options().max_request_bytes});
}

grpc::ServerUnaryReactor* SwitchyardService::ListModels(grpc::CallbackServerContext* context,
                                                        const v1::ListModelsRequest*,
                                                        v1::ListModelsResponse* response) {
  const std::shared_ptr<const ModelTable> models = front_->models();
  for (const KnownModel& known : models->models()) {
    if (known.loaded == nullptr) continue;
    const ServedModel& served = *known.loaded;
    v1::Model& model = *response->add_models();
    model.set_name(served.name);
    model.set_family(served.spec.family);
    model.set_checkpoint_dtype(ToWire(served.spec.dtype));
    model.set_compute_dtype(ToWire(served.compute_dtype()));
    for (const LayerSpec& spec : served.spec.layers) {
      if (!known.serves(spec.name)) continue;
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
  return FinishNow(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* SwitchyardService::GetStatus(grpc::CallbackServerContext* context,
                                                       const v1::GetStatusRequest*, v1::GetStatusResponse* response) {
  const std::shared_ptr<const ModelTable> models = front_->models();
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
    FillRank(static_cast<int>(rank), group.ranks[rank], ExpertsOfRank(*models, static_cast<int>(rank)),
             response->add_ranks());
  }
  for (const auto& entry : models->layers()) {
    const ServedLayer* const layer = entry->layer.get();
    v1::LayerLoad& load = *response->add_layers();
    load.set_model(layer->model);
    load.set_layer(layer->spec.name);
    for (int64_t rows : front_->metrics().RowsPerExpert(layer->id)) load.add_rows_per_expert(rows);
  }
  return FinishNow(context, absl::OkStatus());
}

}  // namespace

const char* const kSwitchyardServiceName = v1::Switchyard::service_full_name();

std::unique_ptr<grpc::Service> MakeSwitchyardService(Front* front) {
  return std::make_unique<SwitchyardService>(front);
}

}  // namespace switchyard
