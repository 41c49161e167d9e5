#include "client/fake_front.h"

#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include "absl/strings/str_cat.h"
#include "base/tensor/convert.h"
#include "client/forward_codec.h"
#include "proto/inference.grpc.pb.h"

namespace switchyard {
namespace {

constexpr int kTopK = 2;

void AddLayer(const std::string& name, int64_t hidden_dim, v1::Model* model) {
  v1::Layer* layer = model->add_layers();
  layer->set_name(name);
  layer->set_hidden_dim(hidden_dim);
  layer->set_expert_dim(8);
  layer->set_num_experts(4);
  layer->set_top_k(kTopK);
  layer->set_activation("silu");
  layer->set_gated(true);
}

v1::ListModelsResponse Models() {
  v1::ListModelsResponse response;
  v1::Model* model = response.add_models();
  model->set_name("tiny");
  model->set_family("qwen3_moe");
  model->set_checkpoint_dtype(v1::DATA_TYPE_BF16);
  model->set_compute_dtype(v1::DATA_TYPE_FP32);
  AddLayer("1", 4, model);
  AddLayer("3", 6, model);
  return response;
}

v1::GetStatusResponse ServingStatus() {
  v1::GetStatusResponse status;
  status.set_version("0.1.0");
  status.set_state("serving");
  status.set_epoch(7);
  status.set_recoveries(2);
  status.set_queued_rows(5);
  v1::Rank* rank = status.add_ranks();
  rank->set_state("serving");
  rank->set_pid(4321);
  rank->set_host("left");
  rank->set_device("cpu");
  rank->set_link("shared-memory");
  rank->set_weight_bytes(3 << 20);
  rank->set_num_experts(4);
  rank->set_load_fraction(1);
  v1::LayerLoad* load = status.add_layers();
  load->set_model("tiny");
  load->set_layer("3");
  for (int64_t rows : {10, 30, 0, 40}) load->add_rows_per_expert(rows);
  return status;
}

// Columns of the requested layer, or 0 when there is no such layer.
int64_t HiddenDim(const v1::ForwardRequest& request) {
  const v1::ListModelsResponse served = Models();
  for (const v1::Model& model : served.models()) {
    for (const v1::Layer& layer : model.layers()) {
      if (model.name() == request.model() && layer.name() == request.layer()) return layer.hidden_dim();
    }
  }
  return 0;
}

std::string Doubled(const std::string& rows, DType dtype) {
  const size_t num_elements = rows.size() / SizeOf(dtype);
  std::vector<double> values(num_elements);
  auto* bytes = reinterpret_cast<std::byte*>(values.data());
  ConvertElements(dtype, reinterpret_cast<const std::byte*>(rows.data()), DType::kF64, bytes, num_elements);
  for (double& value : values) value *= 2;
  std::string result(rows.size(), '\0');
  ConvertElements(DType::kF64, bytes, dtype, reinterpret_cast<std::byte*>(result.data()), num_elements);
  return result;
}

void FillRouting(int64_t num_rows, v1::Routing* routing) {
  routing->set_top_k(kTopK);
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    for (int choice = 0; choice < kTopK; ++choice) {
      routing->add_expert_ids((row_idx + choice) % 4);
      routing->add_expert_weights(choice == 0 ? 0.75f : 0.25f);
    }
  }
}

}  // namespace

class FakeFront::Service final : public v1::Switchyard::Service {
 public:
  explicit Service(FakeFront* front) : front_(front) {}

  grpc::Status Forward(grpc::ServerContext* context, const v1::ForwardRequest* request,
                       v1::ForwardResponse* response) override {
    RecordId(*context);
    return CurrentHandler()(context, *request, response);
  }

  grpc::Status ForwardStream(grpc::ServerContext* context, Stream* stream) override {
    RecordId(*context);
    StreamHandler handler;
    {
      MutexLock lock(&front_->mu_);
      handler = front_->stream_handler_;
    }
    if (handler != nullptr) return handler(context, stream);
    v1::ForwardStreamRequest message;
    while (stream->Read(&message)) {
      if (message.has_forward()) stream->Write(Answer(message, CurrentHandler()));
    }
    return grpc::Status::OK;
  }

  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    *response = Models();
    return grpc::Status::OK;
  }

  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*, v1::GetStatusResponse* response) override {
    MutexLock lock(&front_->mu_);
    *response = front_->status_;
    return grpc::Status::OK;
  }

 private:
  void RecordId(const grpc::ServerContext& context) {
    MutexLock lock(&front_->mu_);
    const auto id = context.client_metadata().find("x-request-id");
    if (id != context.client_metadata().end()) {
      front_->request_ids_.emplace_back(id->second.data(), id->second.size());
    }
  }

  // Counts one more request and returns the handler for it.
  Handler CurrentHandler() {
    front_->num_forwards_.fetch_add(1);
    MutexLock lock(&front_->mu_);
    return front_->handler_;
  }

  FakeFront* const front_;
};

class FakeFront::Repository final : public inference::GRPCInferenceService::Service {
 public:
  explicit Repository(FakeFront* front) : front_(front) {}

  grpc::Status RepositoryModelLoad(grpc::ServerContext*, const inference::RepositoryModelLoadRequest* request,
                                   inference::RepositoryModelLoadResponse*) override {
    return Change("load ", request->model_name());
  }
  grpc::Status RepositoryModelUnload(grpc::ServerContext*, const inference::RepositoryModelUnloadRequest* request,
                                     inference::RepositoryModelUnloadResponse*) override {
    return Change("unload ", request->model_name());
  }

 private:
  grpc::Status Change(const std::string& what, const std::string& name) {
    if (name == "absent") return grpc::Status(grpc::StatusCode::NOT_FOUND, "no model 'absent'");
    MutexLock lock(&front_->mu_);
    front_->changes_.push_back(what + name);
    return grpc::Status::OK;
  }

  FakeFront* const front_;
};

FakeFront::FakeFront()
    : service_(std::make_unique<Service>(this)),
      repository_(std::make_unique<Repository>(this)),
      handler_(&Double),
      status_(ServingStatus()) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.SetMaxReceiveMessageSize(-1);
  builder.RegisterService(service_.get());
  builder.RegisterService(repository_.get());
  server_ = builder.BuildAndStart();
}

FakeFront::~FakeFront() { server_->Shutdown(); }

std::string FakeFront::target() const { return absl::StrCat("127.0.0.1:", port_); }

void FakeFront::SetHandler(Handler handler) {
  MutexLock lock(&mu_);
  handler_ = std::move(handler);
}

void FakeFront::SetStreamHandler(StreamHandler handler) {
  MutexLock lock(&mu_);
  stream_handler_ = std::move(handler);
}

void FakeFront::SetStatus(v1::GetStatusResponse status) {
  MutexLock lock(&mu_);
  status_ = std::move(status);
}

std::vector<std::string> FakeFront::changes() const {
  MutexLock lock(&mu_);
  return changes_;
}

std::vector<std::string> FakeFront::request_ids() const {
  MutexLock lock(&mu_);
  return request_ids_;
}

grpc::Status FakeFront::Double(grpc::ServerContext*, const v1::ForwardRequest& request, v1::ForwardResponse* response) {
  const absl::StatusOr<DType> dtype = FromProto(request.dtype());
  if (!dtype.ok()) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, std::string(dtype.status().message()));
  const int64_t hidden_dim = HiddenDim(request);
  if (hidden_dim == 0) return grpc::Status(grpc::StatusCode::NOT_FOUND, "no layer " + request.layer());
  if (request.rows().size() != request.num_rows() * hidden_dim * SizeOf(*dtype)) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat("rows: expected ", hidden_dim, " columns"));
  }
  response->set_dtype(request.dtype());
  response->set_num_rows(request.num_rows());
  response->set_rows(Doubled(request.rows(), *dtype));
  response->mutable_stats()->set_num_steps(1);
  response->mutable_stats()->set_rows_crossed(request.num_rows());
  if (request.return_routing()) FillRouting(request.num_rows(), response->mutable_routing());
  return grpc::Status::OK;
}

v1::ForwardStreamResponse FakeFront::Answer(const v1::ForwardStreamRequest& message, const Handler& handler) {
  v1::ForwardStreamResponse answer;
  answer.set_id(message.id());
  const grpc::Status status = handler(nullptr, message.forward(), answer.mutable_response());
  if (status.ok()) return answer;
  answer.mutable_error()->set_code(status.error_code());
  answer.mutable_error()->set_message(status.error_message());
  return answer;
}

}  // namespace switchyard
