#include "client/forward_codec.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <bit>
#include <limits>

#include "client/forward_stream.h"

namespace switchyard {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

static_assert(std::endian::native == std::endian::little, "rows travel little-endian and are sent as they lie");

constexpr size_t kMaxProtoBytes = std::numeric_limits<int32_t>::max();

void AppendVarint(uint32_t value, std::string* out) {
  uint8_t bytes[5];
  uint8_t* const end = CodedOutputStream::WriteVarint32ToArray(value, bytes);
  out->append(bytes, end);
}

void AppendLengthTag(int field_number, size_t num_bytes, std::string* out) {
  AppendVarint(WireFormatLite::MakeTag(field_number, WireFormatLite::WIRETYPE_LENGTH_DELIMITED), out);
  AppendVarint(static_cast<uint32_t>(num_bytes), out);
}

// Encodes all fields of the request but the row bytes, followed by the tag and length that precede the row bytes.
std::string EncodeHeader(const ForwardArgs& args, int64_t timeout_us) {
  v1::ForwardRequest request;
  request.set_model(args.model);
  request.set_layer(args.layer);
  request.set_dtype(ToProto(args.rows.dtype));
  request.set_num_rows(args.rows.num_rows);
  request.set_return_routing(args.return_routing);
  request.set_gate_index(args.gate_index);
  request.set_top_k(args.top_k);
  request.set_priority(args.priority);
  request.set_queue_timeout_us(absl::ToInt64Microseconds(args.queue_timeout));
  if (args.capacity_factor.has_value()) request.set_capacity_factor(*args.capacity_factor);
  request.set_return_balance_loss(args.return_balance_loss);
  request.set_timeout_us(timeout_us);
  if (args.return_stats.has_value()) request.set_return_stats(*args.return_stats);
  std::string header = request.SerializeAsString();
  AppendLengthTag(v1::ForwardRequest::kRowsFieldNumber, args.rows.size_bytes(), &header);
  return header;
}

// Room for the envelope of a stream's message.
constexpr size_t kMaxEnvelopeBytes = 32;

absl::Status CheckSize(const ForwardArgs& args, size_t header_bytes) {
  const size_t num_bytes = args.rows.size_bytes();
  if (num_bytes <= kMaxProtoBytes - kMaxEnvelopeBytes - header_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("rows: ", num_bytes, " bytes do not fit into one request (", kMaxProtoBytes, " bytes)"));
}

grpc::Slice RowsSlice(const ForwardArgs& args) {
  const size_t num_bytes = args.rows.size_bytes();
  if (args.rows_owner == nullptr) return grpc::Slice(args.rows.data, num_bytes);
  auto* owner = new std::shared_ptr<const void>(args.rows_owner);
  return grpc::Slice(
      const_cast<std::byte*>(args.rows.data), num_bytes,
      [](void* held) { delete static_cast<std::shared_ptr<const void>*>(held); }, owner);
}

// Reads one ForwardResponse, field by field.
class ResponseReader {
 public:
  ResponseReader(google::protobuf::io::ZeroCopyInputStream* stream, ConstMatrixView request_rows)
      : in_(stream), request_rows_(request_rows) {}

  // Reads a response from the `num_bytes` of the stream that begin at `offset`.
  absl::StatusOr<ForwardResult> ReadPart(int offset, int num_bytes) {
    if (!in_.Skip(offset)) return Malformed();
    in_.PushLimit(num_bytes);
    return Read();
  }

  absl::StatusOr<ForwardResult> Read() {
    while (const uint32_t tag = in_.ReadTag()) {
      SY_RETURN_IF_ERROR(ReadField(tag));
    }
    if (!in_.ConsumedEntireMessage()) return Malformed();
    SY_RETURN_IF_ERROR(CheckShape());
    SY_RETURN_IF_ERROR(MoveRouting());
    return std::move(result_);
  }

 private:
  static absl::Status Malformed() { return absl::InternalError("response: not a valid ForwardResponse message"); }

  absl::Status ReadField(uint32_t tag) {
    switch (WireFormatLite::GetTagFieldNumber(tag)) {
      case v1::ForwardResponse::kDtypeFieldNumber:
        return ReadVarint(tag, &dtype_);
      case v1::ForwardResponse::kNumRowsFieldNumber:
        return ReadVarint(tag, &num_rows_);
      case v1::ForwardResponse::kRowsFieldNumber:
        return ReadRows(tag);
      case v1::ForwardResponse::kRoutingFieldNumber:
        return ReadMessage(tag, &routing_);
      case v1::ForwardResponse::kStatsFieldNumber:
        return ReadMessage(tag, &result_.stats);
      case v1::ForwardResponse::kBalanceLossFieldNumber:
        return ReadDouble(tag, &result_.balance_loss);
      default:
        return WireFormatLite::SkipField(&in_, tag) ? absl::OkStatus() : Malformed();
    }
  }

  absl::Status ReadVarint(uint32_t tag, uint64_t* value) {
    const bool ok = WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_VARINT && in_.ReadVarint64(value);
    return ok ? absl::OkStatus() : Malformed();
  }

  absl::Status ReadDouble(uint32_t tag, std::optional<double>* value) {
    uint64_t bits = 0;
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_FIXED64 || !in_.ReadLittleEndian64(&bits)) {
      return Malformed();
    }
    *value = std::bit_cast<double>(bits);
    return absl::OkStatus();
  }

  absl::Status ReadLength(uint32_t tag, int* num_bytes) {
    const bool ok = WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED &&
                    in_.ReadVarintSizeAsInt(num_bytes);
    return ok ? absl::OkStatus() : Malformed();
  }

  absl::Status ReadRows(uint32_t tag) {
    int num_bytes = 0;
    SY_RETURN_IF_ERROR(ReadLength(tag, &num_bytes));
    if (static_cast<size_t>(num_bytes) != request_rows_.size_bytes()) {
      return absl::InternalError(absl::StrCat("response rows: expected ", request_rows_.size_bytes(),
                                              " bytes, as many as were sent, found ", num_bytes));
    }
    result_.rows = HostMatrix::Allocate(request_rows_.dtype, request_rows_.num_rows, request_rows_.num_cols);
    return in_.ReadRaw(result_.rows.buffer.data(), num_bytes) ? absl::OkStatus() : Malformed();
  }

  absl::Status ReadMessage(uint32_t tag, google::protobuf::MessageLite* message) {
    int num_bytes = 0;
    SY_RETURN_IF_ERROR(ReadLength(tag, &num_bytes));
    const CodedInputStream::Limit limit = in_.PushLimit(num_bytes);
    const bool ok = message->MergeFromCodedStream(&in_) && in_.BytesUntilLimit() == 0;
    in_.PopLimit(limit);
    return ok ? absl::OkStatus() : Malformed();
  }

  absl::Status CheckShape() const {
    if (dtype_ != static_cast<uint64_t>(ToProto(request_rows_.dtype))) {
      return absl::InternalError(absl::StrCat("response dtype: expected ", std::string(DTypeName(request_rows_.dtype)),
                                              ", that of the request, found DataType ", dtype_));
    }
    if (num_rows_ != static_cast<uint64_t>(request_rows_.num_rows)) {
      return absl::InternalError(
          absl::StrCat("response num_rows: expected ", request_rows_.num_rows, ", found ", num_rows_));
    }
    if (result_.rows.num_rows != request_rows_.num_rows) return absl::InternalError("response rows: missing");
    return absl::OkStatus();
  }

  absl::Status MoveRouting() {
    const int64_t expected = request_rows_.num_rows * routing_.top_k();
    if (routing_.expert_ids_size() != expected || routing_.expert_weights_size() != expected) {
      return absl::InternalError(absl::StrCat("response routing: expected ", expected,
                                              " expert ids and weights, found ", routing_.expert_ids_size(), " and ",
                                              routing_.expert_weights_size()));
    }
    if (routing_.top_k() == 0) return absl::OkStatus();
    Routing& routing = result_.routing;
    routing.num_rows = request_rows_.num_rows;
    routing.top_k = routing_.top_k();
    routing.expert_idx.assign(routing_.expert_ids().begin(), routing_.expert_ids().end());
    routing.weight.assign(routing_.expert_weights().begin(), routing_.expert_weights().end());
    return absl::OkStatus();
  }

  CodedInputStream in_;
  const ConstMatrixView request_rows_;
  uint64_t dtype_ = 0;
  uint64_t num_rows_ = 0;
  v1::Routing routing_;
  ForwardResult result_;
};

absl::Status ErrorOf(const v1::StreamError& error) {
  absl::Status status(static_cast<absl::StatusCode>(error.code()), error.message());
  // The server reported success as an error, or a code that does not exist.
  if (error.code() < 1 || error.code() > 16) status = absl::UnknownError(error.message());
  if (error.retry_after_ms() > 0) {
    status.SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(error.retry_after_ms())));
  }
  return status;
}

// Reads one ForwardStreamResponse, but skips the ForwardResponse in it.
class StreamAnswerReader {
 public:
  StreamAnswerReader(google::protobuf::io::ZeroCopyInputStream* stream, int num_bytes) : in_(stream) {
    in_.PushLimit(num_bytes);
  }

  absl::StatusOr<StreamAnswer> Read() {
    while (const uint32_t tag = in_.ReadTag()) {
      if (!ReadField(tag)) return Malformed();
    }
    if (!in_.ConsumedEntireMessage() || !has_result_) return Malformed();
    return std::move(answer_);
  }

 private:
  static absl::Status Malformed() {
    return absl::InternalError("response: not a valid ForwardStreamResponse message with a result");
  }

  bool ReadField(uint32_t tag) {
    constexpr auto kText = WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
    switch (tag) {
      case WireFormatLite::MakeTag(v1::ForwardStreamResponse::kIdFieldNumber, WireFormatLite::WIRETYPE_VARINT):
        return in_.ReadVarint64(&answer_.id);
      case WireFormatLite::MakeTag(v1::ForwardStreamResponse::kResponseFieldNumber, kText):
        has_result_ = true;
        answer_.error = absl::OkStatus();
        if (!in_.ReadVarintSizeAsInt(&answer_.num_bytes) || answer_.num_bytes > in_.BytesUntilLimit()) return false;
        answer_.offset = in_.CurrentPosition();
        return in_.Skip(answer_.num_bytes);
      case WireFormatLite::MakeTag(v1::ForwardStreamResponse::kErrorFieldNumber, kText):
        has_result_ = true;
        return ReadError();
      default:
        return WireFormatLite::SkipField(&in_, tag);
    }
  }

  bool ReadError() {
    int num_bytes = 0;
    if (!in_.ReadVarintSizeAsInt(&num_bytes) || num_bytes > in_.BytesUntilLimit()) return false;
    v1::StreamError error;
    const CodedInputStream::Limit limit = in_.PushLimit(num_bytes);
    if (!error.MergeFromCodedStream(&in_) || in_.BytesUntilLimit() != 0) return false;
    in_.PopLimit(limit);
    answer_.error = ErrorOf(error);
    return true;
  }

  CodedInputStream in_;
  bool has_result_ = false;
  StreamAnswer answer_;
};

}  // namespace

v1::DataType ToProto(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return v1::DATA_TYPE_FP64;
    case DType::kF32:
      return v1::DATA_TYPE_FP32;
    case DType::kF16:
      return v1::DATA_TYPE_FP16;
    case DType::kBF16:
      return v1::DATA_TYPE_BF16;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

absl::StatusOr<DType> FromProto(v1::DataType dtype) {
  for (DType candidate : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    if (ToProto(candidate) == dtype) return candidate;
  }
  return absl::InvalidArgumentError(absl::StrCat("DataType ", static_cast<int>(dtype), " names no element type"));
}

absl::StatusOr<grpc::ByteBuffer> EncodeForwardRequest(const ForwardArgs& args) {
  const std::string header = EncodeHeader(args, /*timeout_us=*/0);
  SY_RETURN_IF_ERROR(CheckSize(args, header.size()));
  const grpc::Slice slices[] = {grpc::Slice(header), RowsSlice(args)};
  return grpc::ByteBuffer(slices, 2);
}

absl::StatusOr<ForwardResult> DecodeForwardResponse(grpc::ByteBuffer* response, ConstMatrixView request_rows) {
  grpc::ProtoBufferReader stream(response);
  if (!stream.status().ok()) return absl::InternalError("response: " + stream.status().error_message());
  return ResponseReader(&stream, request_rows).Read();
}

absl::StatusOr<grpc::ByteBuffer> EncodeStreamRequest(uint64_t id, const ForwardArgs& args, int64_t timeout_us) {
  const std::string header = EncodeHeader(args, timeout_us);
  SY_RETURN_IF_ERROR(CheckSize(args, header.size()));
  v1::ForwardStreamRequest envelope;
  envelope.set_id(id);
  std::string head = envelope.SerializeAsString();
  AppendLengthTag(v1::ForwardStreamRequest::kForwardFieldNumber, header.size() + args.rows.size_bytes(), &head);
  head += header;
  const grpc::Slice slices[] = {grpc::Slice(head), RowsSlice(args)};
  return grpc::ByteBuffer(slices, 2);
}

grpc::ByteBuffer EncodeStreamCancel(uint64_t id) {
  v1::ForwardStreamRequest message;
  message.set_id(id);
  message.set_cancel(true);
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::StatusOr<StreamAnswer> ReadStreamAnswer(grpc::ByteBuffer* message) {
  grpc::ProtoBufferReader stream(message);
  if (!stream.status().ok()) return absl::InternalError("response: " + stream.status().error_message());
  return StreamAnswerReader(&stream, static_cast<int>(message->Length())).Read();
}

absl::StatusOr<ForwardResult> DecodeStreamResponse(grpc::ByteBuffer* message, const StreamAnswer& answer,
                                                   ConstMatrixView request_rows) {
  grpc::ProtoBufferReader stream(message);
  if (!stream.status().ok()) return absl::InternalError("response: " + stream.status().error_message());
  return ResponseReader(&stream, request_rows).ReadPart(answer.offset, answer.num_bytes);
}

}  // namespace switchyard
