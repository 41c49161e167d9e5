#include "server/api/kserve/kserve_infer_codec.h"

#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>

#include <utility>

namespace switchyard {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;
using Contents = inference::InferTensorContents;
using Input = inference::ModelInferRequest::InferInputTensor;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using inference::ModelStreamInferResponse;

// Limits, because small messages become much larger objects: without them a request of many empty fields would take
// many times its own size.
constexpr size_t kMaxHeadBytes = 64 << 10;
constexpr size_t kMaxRawContents = 64;
constexpr size_t kMaxChunks = 1 << 20;

constexpr uint32_t LengthTag(int field) {
  return WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

// Reads a length and then that many bytes as fields; `read_field(tag)` reads one field. False when any of it is
// malformed.
template <typename ReadFieldFn>
bool ReadMessage(CodedInputStream& input, ReadFieldFn read_field) {
  int length = 0;
  if (!input.ReadVarintSizeAsInt(&length) || length > input.BytesUntilLimit()) return false;
  const CodedInputStream::Limit outer = input.PushLimit(length);
  while (const uint32_t tag = input.ReadTag()) {
    if (!read_field(tag)) return false;
  }
  if (!input.ConsumedEntireMessage()) return false;
  input.PopLimit(outer);
  return true;
}

// Appends a field unchanged.
bool CopyField(CodedInputStream& input, uint32_t tag, std::string* to) {
  StringOutputStream stream(to);
  CodedOutputStream output(&stream);
  return WireFormatLite::SkipField(&input, tag, &output);
}

bool ReadPacked(CodedInputStream& input, int element_size, Chunks* chunks) {
  uint32_t length = 0;
  return input.ReadVarint32(&length) && length % element_size == 0 && ReadChunks(input, length, chunks);
}

bool ReadContentsField(CodedInputStream& input, uint32_t tag, TypedContents* contents) {
  switch (tag) {
    case LengthTag(Contents::kFp32ContentsFieldNumber):
      return ReadPacked(input, sizeof(float), &contents->fp32);
    case WireFormatLite::MakeTag(Contents::kFp32ContentsFieldNumber, WireFormatLite::WIRETYPE_FIXED32):
      return ReadChunks(input, sizeof(float), &contents->fp32);
    case LengthTag(Contents::kFp64ContentsFieldNumber):
      return ReadPacked(input, sizeof(double), &contents->fp64);
    case WireFormatLite::MakeTag(Contents::kFp64ContentsFieldNumber, WireFormatLite::WIRETYPE_FIXED64):
      return ReadChunks(input, sizeof(double), &contents->fp64);
    default:
      contents->other_field = WireFormatLite::GetTagFieldNumber(tag);
      return WireFormatLite::SkipField(&input, tag);
  }
}

// Collects a request's fields.
class InferReader {
 public:
  explicit InferReader(DecodedInfer* request) : request_(request) {}

  bool ReadField(CodedInputStream& input, uint32_t tag) {
    switch (tag) {
      case LengthTag(ModelInferRequest::kInputsFieldNumber):
        return ReadInput(input);
      case LengthTag(ModelInferRequest::kRawInputContentsFieldNumber):
        return ReadRaw(input);
      default:
        return CopyField(input, tag, &head_);
    }
  }

  // Call it after every field, so that little more than the limits is ever held.
  absl::Status CheckSize() const {
    if (head_.size() + input_bytes_ > kMaxHeadBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("the request's fields beside its tensors' bytes take more than ", kMaxHeadBytes, " bytes"));
    }
    if (request_->raw.size() > kMaxRawContents) {
      return absl::InvalidArgumentError(
          absl::StrCat("raw_input_contents: more than ", kMaxRawContents, " entries, expected one for each input"));
    }
    if (num_chunks_ > kMaxChunks) {
      return absl::InvalidArgumentError(
          absl::StrCat("the request's tensors are in more than ", kMaxChunks, " pieces; send packed or raw contents"));
    }
    return absl::OkStatus();
  }

  // Parses the collected fields. False when strings among them are not UTF-8, or a small message is malformed.
  bool Finish() {
    if (!request_->head.ParseFromString(head_)) return false;
    for (const std::string& input : inputs_) {
      if (!request_->head.add_inputs()->ParseFromString(input)) return false;
    }
    return true;
  }

 private:
  bool ReadInput(CodedInputStream& input) {
    std::string& head = inputs_.emplace_back();
    TypedContents& contents = request_->typed.emplace_back();
    const auto read_contents = [&](uint32_t tag) {
      return contents.fp32.size() + contents.fp64.size() <= kMaxChunks && ReadContentsField(input, tag, &contents);
    };
    const bool read = ReadMessage(input, [&](uint32_t tag) {
      if (tag != LengthTag(Input::kContentsFieldNumber)) return CopyField(input, tag, &head);
      contents.is_set = true;
      return ReadMessage(input, read_contents);
    });
    num_chunks_ += contents.fp32.size() + contents.fp64.size();
    input_bytes_ += head.size() + sizeof(Input);
    return read;
  }

  bool ReadRaw(CodedInputStream& input) {
    uint32_t length = 0;
    Chunks& chunks = request_->raw.emplace_back();
    const bool read = input.ReadVarint32(&length) && ReadChunks(input, length, &chunks);
    num_chunks_ += chunks.size();
    return read;
  }

  DecodedInfer* const request_;
  std::string head_;                 // fields that protobuf parses at the end
  std::vector<std::string> inputs_;  // likewise, one for each input
  size_t input_bytes_ = 0;
  size_t num_chunks_ = 0;
};

absl::Status NotARequest(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("the request is not an inference.ModelInferRequest: ", why));
}

// The message in pieces: before each tensor's slices comes a slice that ends with the tensor's tag and length. This is
// possible because protobuf allows fields in any order.
std::vector<grpc::Slice> InferSlices(const ModelInferResponse& head, const std::vector<TensorSlices>& tensors) {
  std::vector<grpc::Slice> slices;
  std::string before = head.SerializeAsString();
  if (tensors.empty()) slices.emplace_back(before);
  for (const TensorSlices& tensor : tensors) {
    slices.push_back(HeadSlice(std::move(before), ModelInferResponse::kRawOutputContentsFieldNumber, SizeOf(tensor)));
    slices.insert(slices.end(), tensor.begin(), tensor.end());
    before.clear();
  }
  return slices;
}

}  // namespace

absl::StatusOr<DecodedInfer> DecodeInfer(const grpc::ByteBuffer& buffer) {
  SY_ASSIGN_OR_RETURN(const auto slices, SlicesOf(buffer));
  SliceStream stream(*slices);
  CodedInputStream input(&stream);
  input.PushLimit(static_cast<int>(buffer.Length()));
  DecodedInfer request;
  request.owner = slices;
  InferReader reader(&request);
  while (const uint32_t tag = input.ReadTag()) {
    const bool read = reader.ReadField(input, tag);
    SY_RETURN_IF_ERROR(reader.CheckSize());
    if (!read) {
      return NotARequest(absl::StrCat("field ", WireFormatLite::GetTagFieldNumber(tag), " is malformed or cut short"));
    }
  }
  if (!input.ConsumedEntireMessage()) return NotARequest("a field's tag is malformed");
  if (!reader.Finish()) return NotARequest("a field is malformed, or a string is not UTF-8");
  return request;
}

grpc::ByteBuffer EncodeInfer(const ModelInferResponse& head, const std::vector<TensorSlices>& tensors) {
  const std::vector<grpc::Slice> slices = InferSlices(head, tensors);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer EncodeStreamInfer(const ModelInferResponse& head, const std::vector<TensorSlices>& tensors) {
  std::vector<grpc::Slice> slices = InferSlices(head, tensors);
  slices.insert(slices.begin(), HeadSlice("", ModelStreamInferResponse::kInferResponseFieldNumber, SizeOf(slices)));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer EncodeStreamError(const ModelInferResponse& head, const absl::Status& status) {
  ModelStreamInferResponse response;
  response.set_error_message(absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message()));
  *response.mutable_infer_response() = head;
  const grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace switchyard
