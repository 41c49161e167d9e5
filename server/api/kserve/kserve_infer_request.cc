#include "server/api/kserve/kserve_infer_request.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_join.h"
#include "server/api/calls/request_checks.h"

namespace switchyard {
namespace {

using Input = inference::ModelInferRequest::InferInputTensor;
using Parameters = InferParameters;

// ---- Parameters

absl::Status ReadParameters(const Parameters& parameters, int64_t max_batch_rows, InferRequest* infer) {
  QueueWish queue;
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "priority", &queue.priority));
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "timeout", &queue.timeout_us));
  SY_RETURN_IF_ERROR(Annotate(ChooseQueueing(queue, "timeout", infer->request.get()), "parameters"));
  SY_RETURN_IF_ERROR(ReadBool(parameters, "triton_enable_empty_final_response", &infer->marks_final));
  SY_RETURN_IF_ERROR(ReadBool(parameters, "balance_loss", &infer->request->ask.return_balance_loss));
  GateWish wish;
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "gate_index", &wish.gate_idx));
  SY_RETURN_IF_ERROR(ReadInteger(parameters, "top_k", &wish.top_k));
  SY_RETURN_IF_ERROR(ReadNumber(parameters, "capacity_factor", &wish.capacity_factor));
  return Annotate(ChooseGate(wish, max_batch_rows, infer->request.get()), "parameters");
}

// ---- Outputs

absl::StatusOr<InferOutput> ParseOutput(const std::string& name) {
  if (name == kRowsName) return InferOutput::kRows;
  if (name == kExpertIdsName) return InferOutput::kExpertIds;
  if (name == kExpertWeightsName) return InferOutput::kExpertWeights;
  return absl::InvalidArgumentError(absl::StrCat("outputs: expected ", kRowsName, ", ", kExpertIdsName, " or ",
                                                 kExpertWeightsName, ", found ", QuotedText(name)));
}

absl::Status CheckClasses(const Parameters& parameters) {
  const auto classes = parameters.find("classification");
  if (classes == parameters.end() || classes->second.int64_param() == 0) return absl::OkStatus();
  return absl::InvalidArgumentError("parameter classification: these outputs have no classes");
}

// An output that is requested twice is sent once.
absl::Status AddOutput(InferOutput output, std::optional<TensorPlace> place, std::vector<WantedOutput>* outputs) {
  const auto it = std::find_if(outputs->begin(), outputs->end(),
                               [output](const WantedOutput& wanted) { return wanted.output == output; });
  if (it == outputs->end()) {
    outputs->push_back({output, std::move(place)});
  } else if (place.has_value() || it->place.has_value()) {
    return absl::InvalidArgumentError("expected once, because it is in shared memory, found again");
  }
  return absl::OkStatus();
}

absl::Status ReadOutput(const inference::ModelInferRequest::InferRequestedOutputTensor& wanted,
                        const MemoryAccess& access, InferRequest* infer) {
  SY_ASSIGN_OR_RETURN(const InferOutput output, ParseOutput(wanted.name()));
  const std::string name = absl::StrCat("outputs ", wanted.name());
  SY_RETURN_IF_ERROR(Annotate(CheckClasses(wanted.parameters()), name));
  auto place = FindPlace(wanted.parameters(), access);
  if (!place.ok()) return Annotate(place.status(), name);
  SY_RETURN_IF_ERROR(Annotate(AddOutput(output, *std::move(place), &infer->outputs), name));
  if (output != InferOutput::kRows) infer->request->ask.return_routing = true;
  return absl::OkStatus();
}

absl::Status ReadOutputs(const inference::ModelInferRequest& head, const MemoryAccess& access, InferRequest* infer) {
  for (const auto& wanted : head.outputs()) SY_RETURN_IF_ERROR(ReadOutput(wanted, access, infer));
  if (infer->outputs.empty()) infer->outputs.push_back({InferOutput::kRows, std::nullopt});
  return absl::OkStatus();
}

// Both need a request that has its rows and its gate.

int64_t OutputBytes(const InferRequest& infer, InferOutput output) {
  if (output == InferOutput::kRows) return infer.num_bytes;
  return infer.request->ask.num_rows * infer.request->ask.top_k * int64_t{4};  // INT32 or FP32
}

absl::Status CheckRoomForOutputs(const InferRequest& infer) {
  for (const WantedOutput& wanted : infer.outputs) {
    const auto needed = static_cast<uint64_t>(OutputBytes(infer, wanted.output));
    if (!wanted.place.has_value() || needed <= wanted.place->byte_size) continue;
    return absl::InvalidArgumentError(absl::StrCat("outputs ", NameOf(wanted.output),
                                                   ": parameters shared_memory_byte_size: expected ", needed,
                                                   " or more, found ", wanted.place->byte_size));
  }
  return absl::OkStatus();
}

// ---- The input

absl::Status CheckInputs(const inference::ModelInferRequest& head) {
  const auto name = [](std::string* out, const Input& input) { absl::StrAppend(out, QuotedText(input.name())); };
  if (head.inputs_size() != 1 || head.inputs(0).name() != kInputName) {
    const std::string found =
        head.inputs_size() > 8 ? absl::StrCat(head.inputs_size()) : absl::StrJoin(head.inputs(), ", ", name);
    return absl::InvalidArgumentError(
        absl::StrCat("inputs: expected 1 input, '", kInputName, "', found ", found.empty() ? "none" : found));
  }
  return absl::OkStatus();
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

// The typed contents for rows of this type. FP16 and BF16 have none.
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
  const int64_t width = request.ask.layer->spec.hidden_dim;
  const int64_t row_bytes = width * static_cast<int64_t>(SizeOf(request.ask.dtype));
  if (request.ask.num_rows <= max_bytes / row_bytes && num_bytes == request.ask.num_rows * row_bytes) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("expected ", request.ask.num_rows, " × ", row_bytes,
                                                 " bytes for shape [", request.ask.num_rows, ", ", width, "] of ",
                                                 std::string(KserveDType(request.ask.dtype)), ", found ", num_bytes));
}

// Takes the rows from the message. Rows at `place` in a region are read later.
absl::Status TakeRows(DecodedInfer& decoded, const std::optional<TensorPlace>& place, InferRequest* infer) {
  Request& request = *infer->request;
  if (place.has_value()) {
    if (!decoded.raw.empty() || decoded.typed[0].is_set) {
      return absl::InvalidArgumentError("contents: expected none beside shared memory");
    }
    infer->num_bytes = static_cast<int64_t>(place->byte_size);
    return absl::OkStatus();
  }
  SY_ASSIGN_OR_RETURN(Chunks chunks, TakeContents(decoded, request.ask.dtype));
  request.progress.rows = ChunkedRows(std::move(chunks), decoded.owner);
  infer->num_bytes = static_cast<int64_t>(request.progress.rows.size_bytes());
  return absl::OkStatus();
}

absl::Status ReadInput(DecodedInfer& decoded, const MemoryAccess& access, int64_t max_bytes, InferRequest* infer) {
  const Input& input = decoded.head.inputs(0);
  Request& request = *infer->request;
  SY_ASSIGN_OR_RETURN(request.ask.dtype, ParseKserveDType(input.datatype()));
  SY_RETURN_IF_ERROR(CheckShape(input, request.ask.layer->spec.hidden_dim));
  request.ask.num_rows = input.shape(0);
  SY_ASSIGN_OR_RETURN(infer->rows_place, FindPlace(input.parameters(), access));
  SY_RETURN_IF_ERROR(TakeRows(decoded, infer->rows_place, infer));
  return CheckBytes(request, infer->num_bytes, max_bytes);
}

}  // namespace

const char* NameOf(InferOutput output) {
  switch (output) {
    case InferOutput::kRows:
      return kRowsName;
    case InferOutput::kExpertIds:
      return kExpertIdsName;
    case InferOutput::kExpertWeights:
      return kExpertWeightsName;
  }
  return "";
}

absl::StatusOr<InferRequest> MakeInferRequest(DecodedInfer decoded, const KserveModels::Entry& entry,
                                              const InferLimits& limits, const MemoryAccess& access) {
  InferRequest infer;
  infer.request = std::make_shared<Request>();
  infer.request->ask.layer = entry.layer;
  SY_RETURN_IF_ERROR(CheckInputs(decoded.head));
  SY_RETURN_IF_ERROR(
      Annotate(ReadInput(decoded, access, limits.max_request_bytes, &infer), absl::StrCat("inputs ", kInputName)));
  SY_RETURN_IF_ERROR(ReadOutputs(decoded.head, access, &infer));
  SY_RETURN_IF_ERROR(ReadParameters(decoded.head.parameters(), limits.max_batch_rows, &infer));
  SY_RETURN_IF_ERROR(CheckRoomForOutputs(infer));
  return infer;
}

}  // namespace switchyard
