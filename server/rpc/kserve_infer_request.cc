#include "server/rpc/kserve_infer_request.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_join.h"
#include "server/rpc/forward_request.h"

namespace switchyard {
namespace {

using inference::InferParameter;
using Input = inference::ModelInferRequest::InferInputTensor;
using Parameters = google::protobuf::Map<std::string, InferParameter>;

constexpr char kSharedMemory[] = "shared_memory_region";

// ---- Parameters

const char* KindOf(const InferParameter& parameter) {
  switch (parameter.parameter_choice_case()) {
    case InferParameter::kBoolParam:
      return "a bool";
    case InferParameter::kInt64Param:
    case InferParameter::kUint64Param:
      return "an integer";
    case InferParameter::kStringParam:
      return "a string";
    case InferParameter::kDoubleParam:
      return "a double";
    case InferParameter::PARAMETER_CHOICE_NOT_SET:
      return "none";
  }
  return "none";
}

absl::Status WrongKind(const char* name, const char* expected, const InferParameter& found) {
  return absl::InvalidArgumentError(
      absl::StrCat("parameters ", name, ": expected ", expected, ", found ", KindOf(found)));
}

// Each leaves `value` alone when there is no such parameter.

absl::Status ReadInteger(const Parameters& parameters, const char* name, int64_t* value) {
  const auto it = parameters.find(name);
  if (it == parameters.end()) return absl::OkStatus();
  const InferParameter& parameter = it->second;
  if (parameter.has_int64_param()) {
    *value = parameter.int64_param();
  } else if (parameter.has_uint64_param()) {
    *value = static_cast<int64_t>(std::min<uint64_t>(parameter.uint64_param(), std::numeric_limits<int64_t>::max()));
  } else {
    return WrongKind(name, "an integer", parameter);
  }
  return absl::OkStatus();
}

absl::Status ReadNumber(const Parameters& parameters, const char* name, std::optional<double>* value) {
  const auto it = parameters.find(name);
  if (it == parameters.end()) return absl::OkStatus();
  if (it->second.has_double_param()) {
    *value = it->second.double_param();
    return absl::OkStatus();
  }
  int64_t integer = 0;
  if (!ReadInteger(parameters, name, &integer).ok()) return WrongKind(name, "a number", it->second);
  *value = static_cast<double>(integer);
  return absl::OkStatus();
}

absl::Status ReadBool(const Parameters& parameters, const char* name, bool* value) {
  const auto it = parameters.find(name);
  if (it == parameters.end()) return absl::OkStatus();
  if (!it->second.has_bool_param()) return WrongKind(name, "a bool", it->second);
  *value = it->second.bool_param();
  return absl::OkStatus();
}

absl::Status ExpectNotNegative(const char* name, int64_t value) {
  if (value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("parameters ", name, ": expected 0 or more, found ", value));
}

absl::Status ReadParameters(const Parameters& parameters, int64_t max_batch_rows, InferRequest* infer) {
  int64_t priority = 0;
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "priority", &priority));
  SY_RETURN_IF_ERROR(ExpectNotNegative("priority", priority));
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "timeout", &infer->timeout_us));
  SY_RETURN_IF_ERROR(ExpectNotNegative("timeout", infer->timeout_us));
  SY_RETURN_IF_ERROR(ReadBool(parameters, "triton_enable_empty_final_response", &infer->marks_final));
  SY_RETURN_IF_ERROR(ReadBool(parameters, "balance_loss", &infer->request->return_balance_loss));
  GateWish wish;
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "gate_index", &wish.gate_idx));
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "top_k", &wish.top_k));
  SY_RETURN_IF_ERROR(ReadNumber(parameters, "capacity_factor", &wish.capacity_factor));
  return Annotate(ChooseGate(wish, max_batch_rows, infer->request.get()), "parameters");
}

// ---- Outputs

absl::Status RefuseSharedMemory(const Parameters& parameters, absl::string_view tensor) {
  if (!parameters.contains(kSharedMemory)) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(tensor, ": parameter ", kSharedMemory, ": this server takes and gives no tensors in shared memory"));
}

absl::StatusOr<InferOutput> ParseOutput(const std::string& name) {
  if (name == kRowsName) return InferOutput::kRows;
  if (name == kExpertIdsName) return InferOutput::kExpertIds;
  if (name == kExpertWeightsName) return InferOutput::kExpertWeights;
  return absl::InvalidArgumentError(absl::StrCat("outputs: expected ", kRowsName, ", ", kExpertIdsName, " or ",
                                                 kExpertWeightsName, ", found ", Quoted(name)));
}

absl::Status ReadOutputs(const inference::ModelInferRequest& head, InferRequest* infer) {
  for (const auto& wanted : head.outputs()) {
    SY_ASSIGN_OR_RETURN(const InferOutput output, ParseOutput(wanted.name()));
    SY_RETURN_IF_ERROR(RefuseSharedMemory(wanted.parameters(), absl::StrCat("outputs ", wanted.name())));
    const auto classes = wanted.parameters().find("classification");
    if (classes != wanted.parameters().end() && classes->second.int64_param() != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("outputs ", wanted.name(), ": parameter classification: these outputs have no classes"));
    }
    auto& outputs = infer->outputs;
    if (std::find(outputs.begin(), outputs.end(), output) == outputs.end()) outputs.push_back(output);
    if (output != InferOutput::kRows) infer->request->return_routing = true;
  }
  if (infer->outputs.empty()) infer->outputs.push_back(InferOutput::kRows);
  return absl::OkStatus();
}

// ---- The input

absl::Status CheckInputs(const inference::ModelInferRequest& head) {
  const auto name = [](std::string* out, const Input& input) { absl::StrAppend(out, Quoted(input.name())); };
  if (head.inputs_size() != 1 || head.inputs(0).name() != kInputName) {
    const std::string found =
        head.inputs_size() > 8 ? absl::StrCat(head.inputs_size()) : absl::StrJoin(head.inputs(), ", ", name);
    return absl::InvalidArgumentError(
        absl::StrCat("inputs: expected 1 input, '", kInputName, "', found ", found.empty() ? "none" : found));
  }
  return RefuseSharedMemory(head.inputs(0).parameters(), absl::StrCat("inputs ", kInputName));
}

std::string ShapeText(const Input& input) {
  if (input.shape_size() > 8) return absl::StrCat(input.shape_size(), " dimensions");
  return absl::StrCat("[", absl::StrJoin(input.shape(), ", "), "]");
}

absl::Status CheckShape(const Input& input, int64_t hidden_dim) {
  if (input.shape_size() == 2 && input.shape(0) >= 1 && input.shape(1) == hidden_dim) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("shape: expected [rows, ", hidden_dim, "] with at least 1 row, found ", ShapeText(input)));
}

// The typed contents that hold rows of this type. FP16 and BF16 have none.
absl::StatusOr<Chunks> TakeTyped(TypedContents& contents, DType dtype) {
  const bool is_f32 = dtype == DType::kF32, is_f64 = dtype == DType::kF64;
  if (!is_f32 && !is_f64) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(KserveDType(dtype)), " has no typed contents: expected raw_input_contents"));
  }
  const bool has_other = contents.other_field != 0 || !(is_f32 ? contents.fp64 : contents.fp32).empty();
  if (has_other) {
    return absl::InvalidArgumentError(absl::StrCat("contents: expected ", is_f32 ? "fp32_contents" : "fp64_contents",
                                                   " alone, found contents of another type"));
  }
  return std::move(is_f32 ? contents.fp32 : contents.fp64);
}

absl::StatusOr<Chunks> TakeContents(DecodedInfer& decoded, DType dtype) {
  if (decoded.raw.empty()) return TakeTyped(decoded.typed[0], dtype);
  if (decoded.typed[0].is_set) {
    return absl::InvalidArgumentError("contents: expected none beside raw_input_contents");
  }
  if (decoded.raw.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("raw_input_contents: expected 1 entry, one for each input, found ", decoded.raw.size()));
  }
  return std::move(decoded.raw[0]);
}

absl::Status CheckBytes(const Request& request, int64_t num_bytes, int64_t max_bytes) {
  if (num_bytes > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(num_bytes, " bytes, the limit --max_request_bytes is ", max_bytes));
  }
  const int64_t width = request.layer->spec.hidden_dim;
  const int64_t row_bytes = width * static_cast<int64_t>(SizeOf(request.dtype));
  if (request.num_rows <= max_bytes / row_bytes && num_bytes == request.num_rows * row_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("expected ", request.num_rows, " × ", row_bytes, " bytes for shape [",
                                                 request.num_rows, ", ", width, "] of ",
                                                 std::string(KserveDType(request.dtype)), ", found ", num_bytes));
}

absl::Status ReadInput(DecodedInfer& decoded, int64_t max_bytes, InferRequest* infer) {
  const Input& input = decoded.head.inputs(0);
  Request& request = *infer->request;
  SY_ASSIGN_OR_RETURN(request.dtype, ParseKserveDType(input.datatype()));
  SY_RETURN_IF_ERROR(CheckShape(input, request.layer->spec.hidden_dim));
  request.num_rows = input.shape(0);
  SY_ASSIGN_OR_RETURN(Chunks chunks, TakeContents(decoded, request.dtype));
  request.rows = ChunkedRows(std::move(chunks), decoded.owner);
  infer->num_bytes = static_cast<int64_t>(request.rows.size_bytes());
  return CheckBytes(request, infer->num_bytes, max_bytes);
}

}  // namespace

absl::StatusOr<InferRequest> MakeInferRequest(DecodedInfer decoded, const KserveModels::Entry& entry,
                                              const InferLimits& limits) {
  InferRequest infer;
  infer.request = std::make_shared<Request>();
  infer.request->layer = entry.layer;
  SY_RETURN_IF_ERROR(CheckInputs(decoded.head));
  SY_RETURN_IF_ERROR(
      Annotate(ReadInput(decoded, limits.max_request_bytes, &infer), absl::StrCat("inputs ", kInputName)));
  SY_RETURN_IF_ERROR(ReadOutputs(decoded.head, &infer));
  SY_RETURN_IF_ERROR(ReadParameters(decoded.head.parameters(), limits.max_batch_rows, &infer));
  return infer;
}

}  // namespace switchyard
