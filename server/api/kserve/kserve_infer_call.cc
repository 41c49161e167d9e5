#include "server/api/kserve/kserve_infer_call.h"

#include <cstring>
#include <utility>

#include "server/requests/pushback.h"

namespace switchyard {
namespace {

// The first `top_k` of each row's choices. The choices after them are shared experts.
template <typename T>
grpc::Slice FirstChoices(const std::vector<T>& choices, int64_t num_rows, int stride, int top_k) {
  grpc::Slice slice(static_cast<size_t>(num_rows) * top_k * sizeof(T));
  auto* to = reinterpret_cast<std::byte*>(const_cast<uint8_t*>(slice.begin()));
  for (int64_t row = 0; row < num_rows; ++row, to += top_k * sizeof(T)) {
    std::memcpy(to, choices.data() + row * stride, top_k * sizeof(T));
  }
  return slice;
}

void AddOutput(const char* name, std::string datatype, int64_t num_rows, int64_t width,
               inference::ModelInferResponse* head) {
  auto& output = *head->add_outputs();
  output.set_name(name);
  output.set_datatype(std::move(datatype));
  output.add_shape(num_rows);
  output.add_shape(width);
}

}  // namespace

void InferCall::Start() {
  const absl::Status status = Prepare();
  if (status.ok() && infer_.rows_place.has_value()) {
    ReadRows();
  } else {
    SubmitOrRefuse(status);
  }
}

absl::Status InferCall::Prepare() {
  SY_ASSIGN_OR_RETURN(DecodedInfer decoded, DecodeInfer(*bytes_));
  result_.head.set_id(decoded.head.id());
  SY_ASSIGN_OR_RETURN(entry_, models_->Find(decoded.head.model_name(), decoded.head.model_version()));
  const ServerOptions& options = front().options();
  SY_ASSIGN_OR_RETURN(infer_, MakeInferRequest(std::move(decoded), *entry_,
                                               {options.max_request_bytes, options.max_batch_rows}, access_));
  infer_.request->ask.caller_id = result_.head.id().substr(0, kMaxRequestIdBytes);
  return absl::OkStatus();
}

void InferCall::ReadRows() {
  const TensorPlace place = *std::exchange(infer_.rows_place, std::nullopt);
  access_.memory->Read(place, [self = shared()](absl::StatusOr<ClientMemory::HostBytes> rows) {
    if (rows.ok()) self->infer_.request->progress.rows = ChunkedRows({rows->bytes}, rows->owner);
    const absl::Status status = Annotate(rows.status(), absl::StrCat("inputs ", kInputName));
    self->SubmitOrRefuse(PushbackMs(rows.status()) > 0 ? WithPushback(status) : status);
  });
}

void InferCall::SubmitOrRefuse(absl::Status status) {
  const ServedLayer* layer = entry_ == nullptr ? nullptr : entry_->layer.get();
  if (!status.ok()) return Submit(std::move(status), layer);
  Submit(std::move(infer_.request), layer);
}

void InferCall::Refuse(const absl::Status& status) {
  result_.status = status;
  entry_ = nullptr;
  answer_(result_);
}

void InferCall::Answer(const absl::Status& status, const std::shared_ptr<Request>& request) {
  result_.status = status;
  if (status.ok()) {
    FillAnswer(*request);
    WriteOutputs(request);
  } else {
    Deliver(*request, absl::OkStatus());
  }
}

void InferCall::WriteOutputs(const std::shared_ptr<Request>& request) {
  std::vector<PlacedOutput> placed;
  for (size_t i = 0; i < infer_.outputs.size(); ++i) {
    std::optional<TensorPlace>& place = infer_.outputs[i].place;
    if (!place.has_value()) continue;
    TensorSlices tensor = std::exchange(result_.tensors[i], {});
    DescribePlace(*place, SizeOf(tensor), result_.head.mutable_outputs(i)->mutable_parameters());
    placed.push_back({*std::exchange(place, std::nullopt), std::move(tensor)});
  }
  if (placed.empty()) return Deliver(*request, absl::OkStatus());
  access_.memory->Write(std::move(placed),
                        [self = shared(), request](const absl::Status& written) { self->Deliver(*request, written); });
}

void InferCall::Deliver(const Request& request, const absl::Status& written) {
  if (!written.ok()) {
    const std::string id = result_.head.id();
    result_ = {.status = Annotate(written, "outputs")};
    result_.head.set_id(id);
  }
  Record(request, result_.status);
  entry_ = nullptr;  // so that a model ends with its last answer, not only when that has been sent
  answer_(result_);
}

void InferCall::FillAnswer(const Request& request) {
  inference::ModelInferResponse& head = result_.head;
  head.set_model_name(entry_->name);
  head.set_model_version(kKserveVersion);
  if (request.ask.return_balance_loss) {
    (*head.mutable_parameters())["balance_loss"].set_double_param(request.outcome.balance_loss);
  }
  const int64_t num_rows = request.ask.num_rows;
  const int stride = request.outcome.routing.top_k;
  for (const WantedOutput& wanted : infer_.outputs) {
    switch (wanted.output) {
      case InferOutput::kRows:
        AddOutput(kRowsName, std::string(KserveDType(request.ask.dtype)), num_rows, request.ask.layer->spec.hidden_dim,
                  &head);
        result_.tensors.push_back(OutputSlices(request));
        break;
      case InferOutput::kExpertIds:
        AddOutput(kExpertIdsName, "INT32", num_rows, request.ask.top_k, &head);
        result_.tensors.push_back(
            {FirstChoices(request.outcome.routing.expert_idx, num_rows, stride, request.ask.top_k)});
        break;
      case InferOutput::kExpertWeights:
        AddOutput(kExpertWeightsName, "FP32", num_rows, request.ask.top_k, &head);
        result_.tensors.push_back({FirstChoices(request.outcome.routing.weight, num_rows, stride, request.ask.top_k)});
        break;
    }
  }
  if (infer_.marks_final) (*head.mutable_parameters())["triton_final_response"].set_bool_param(true);
}

}  // namespace switchyard
