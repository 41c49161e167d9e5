#include "server/api/forward/forward_codec.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <bit>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "rpc/slice_stream.h"

namespace switchyard {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Real names are much shorter. The limit exists because names come back in errors, which travel in headers.
constexpr uint32_t kMaxNameBytes = 1024;

bool ReadName(CodedInputStream& input, std::string* name) {
  uint32_t length = 0;
  return input.ReadVarint32(&length) && length <= kMaxNameBytes && input.ReadString(name, static_cast<int>(length)) &&
         WireFormatLite::VerifyUtf8String(name->data(), static_cast<int>(length), WireFormatLite::PARSE, nullptr);
}

using Owner = std::shared_ptr<const void>;  // keeps the bytes that the rows view

bool ReadRows(CodedInputStream& input, const Owner& owner, ChunkedRows* rows) {
  uint32_t length = 0;
  Chunks chunks;
  if (!input.ReadVarint32(&length) || !ReadChunks(input, length, &chunks)) return false;
  *rows = ChunkedRows(std::move(chunks), owner);
  return true;
}

// Reads one field of a known tag into `request`; false when the bytes end or contradict the field's type. When a field
// comes several times the last one counts, as everywhere in protobuf.
bool ReadField(CodedInputStream& input, uint32_t tag, const Owner& owner, DecodedForward* request) {
  constexpr auto kText = WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
  constexpr auto kNumber = WireFormatLite::WIRETYPE_VARINT;
  uint64_t number = 0;
  switch (tag) {
    case WireFormatLite::MakeTag(v1::ForwardRequest::kModelFieldNumber, kText):
      return ReadName(input, &request->model);
    case WireFormatLite::MakeTag(v1::ForwardRequest::kLayerFieldNumber, kText):
      return ReadName(input, &request->layer);
    case WireFormatLite::MakeTag(v1::ForwardRequest::kRowsFieldNumber, kText):
      return ReadRows(input, owner, &request->rows);
    case WireFormatLite::MakeTag(v1::ForwardRequest::kDtypeFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->dtype = static_cast<int>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kNumRowsFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->num_rows = static_cast<int64_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kReturnRoutingFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->return_routing = number != 0;
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kReturnBalanceLossFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->return_balance_loss = number != 0;
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kGateIndexFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->gate_idx = static_cast<int32_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kTopKFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->top_k = static_cast<int32_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kPriorityFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->priority = static_cast<int32_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kQueueTimeoutUsFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->queue_timeout_us = static_cast<int64_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kCapacityFactorFieldNumber, WireFormatLite::WIRETYPE_FIXED64):
      if (!input.ReadLittleEndian64(&number)) return false;
      request->capacity_factor = std::bit_cast<double>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kTimeoutUsFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->timeout_us = static_cast<int64_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kReturnStatsFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->return_stats = number != 0;
      return true;
    default:
      return WireFormatLite::SkipField(&input, tag);
  }
}

// Reads fields up to the end of the message, which is the end of the stream or of its limit.
absl::Status ReadForward(CodedInputStream& input, const Owner& owner, DecodedForward* request) {
  while (const uint32_t tag = input.ReadTag()) {
    if (!ReadField(input, tag, owner, request)) {
      return absl::InvalidArgumentError(absl::StrCat("the request is not a switchyard.v1.ForwardRequest: field ",
                                                     WireFormatLite::GetTagFieldNumber(tag),
                                                     " is malformed or cut short"));
    }
  }
  if (input.ConsumedEntireMessage()) return absl::OkStatus();
  return absl::InvalidArgumentError("the request is not a switchyard.v1.ForwardRequest: a field's tag is malformed");
}

absl::Status NotAStreamMessage(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("the message is not a switchyard.v1.ForwardStreamRequest: ", why));
}

// Reads one field of a known tag.
absl::Status ReadStreamField(CodedInputStream& input, uint32_t tag, const Owner& owner, DecodedStreamMessage* message) {
  uint64_t number = 0;
  int length = 0;
  switch (tag) {
    case WireFormatLite::MakeTag(v1::ForwardStreamRequest::kIdFieldNumber, WireFormatLite::WIRETYPE_VARINT):
      if (input.ReadVarint64(&message->id)) return absl::OkStatus();
      break;
    case WireFormatLite::MakeTag(v1::ForwardStreamRequest::kCancelFieldNumber, WireFormatLite::WIRETYPE_VARINT):
      message->is_cancel = true;
      if (input.ReadVarint64(&number)) return absl::OkStatus();
      break;
    case WireFormatLite::MakeTag(v1::ForwardStreamRequest::kForwardFieldNumber,
                                 WireFormatLite::WIRETYPE_LENGTH_DELIMITED): {
      if (!input.ReadVarintSizeAsInt(&length) || length > input.BytesUntilLimit()) break;
      const CodedInputStream::Limit outer = input.PushLimit(length);
      // A message may come in several parts, which are merged.
      if (message->is_cancel || !message->forward.ok()) message->forward = DecodedForward();
      message->is_cancel = false;
      SY_RETURN_IF_ERROR(ReadForward(input, owner, &*message->forward));
      input.PopLimit(outer);
      return absl::OkStatus();
    }
    default:
      if (WireFormatLite::SkipField(&input, tag)) return absl::OkStatus();
  }
  return NotAStreamMessage(
      absl::StrCat("field ", WireFormatLite::GetTagFieldNumber(tag), " is malformed or cut short"));
}

absl::Status ReadStreamMessage(const grpc::ByteBuffer& buffer, DecodedStreamMessage* message) {
  SY_ASSIGN_OR_RETURN(const auto slices, SlicesOf(buffer));
  SliceStream stream(*slices);
  CodedInputStream input(&stream);
  input.PushLimit(static_cast<int>(buffer.Length()));
  while (const uint32_t tag = input.ReadTag()) {
    SY_RETURN_IF_ERROR(ReadStreamField(input, tag, slices, message));
  }
  return input.ConsumedEntireMessage() ? absl::OkStatus() : NotAStreamMessage("a field's tag is malformed");
}

// Escapes a text that is not UTF-8. A message may quote the request's own bytes, but protobuf's readers refuse strings
// that are not UTF-8.
std::string AsUtf8(absl::string_view text) {
  const bool is_utf8 = WireFormatLite::VerifyUtf8String(text.data(), static_cast<int>(text.size()),
                                                        WireFormatLite::SERIALIZE, "switchyard.v1.StreamError.message");
  return is_utf8 ? std::string(text) : absl::CEscape(text);
}

// The message in pieces. Protobuf allows fields in any order and a message in several parts. So all other fields come
// first, then the tag and the rows' bytes.
TensorSlices ForwardSlices(const v1::ForwardResponse& rest, const TensorSlices& rows) {
  TensorSlices slices = {HeadSlice(rest.SerializeAsString(), v1::ForwardResponse::kRowsFieldNumber, SizeOf(rows))};
  slices.insert(slices.end(), rows.begin(), rows.end());
  return slices;
}

}  // namespace

absl::StatusOr<DecodedForward> DecodeForward(const grpc::ByteBuffer& buffer) {
  SY_ASSIGN_OR_RETURN(const auto slices, SlicesOf(buffer));
  SliceStream stream(*slices);
  CodedInputStream input(&stream);
  DecodedForward request;
  SY_RETURN_IF_ERROR(ReadForward(input, slices, &request));
  return request;
}

DecodedStreamMessage DecodeStreamMessage(const grpc::ByteBuffer& buffer) {
  DecodedStreamMessage message;
  message.forward = NotAStreamMessage("action: expected forward or cancel, found neither");
  if (const absl::Status status = ReadStreamMessage(buffer, &message); !status.ok()) {
    message.is_cancel = false;
    message.forward = status;
  }
  return message;
}

grpc::ByteBuffer EncodeForward(const v1::ForwardResponse& rest, const TensorSlices& rows) {
  const TensorSlices slices = ForwardSlices(rest, rows);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer EncodeStreamForward(uint64_t id, const v1::ForwardResponse& rest, const TensorSlices& rows) {
  TensorSlices slices = ForwardSlices(rest, rows);
  v1::ForwardStreamResponse envelope;
  envelope.set_id(id);
  slices.insert(slices.begin(), HeadSlice(envelope.SerializeAsString(), v1::ForwardStreamResponse::kResponseFieldNumber,
                                          SizeOf(slices)));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer EncodeStreamError(uint64_t id, const absl::Status& status, int64_t retry_after_ms) {
  v1::ForwardStreamResponse response;
  response.set_id(id);
  v1::StreamError& error = *response.mutable_error();
  error.set_code(static_cast<int>(status.code()));
  error.set_message(AsUtf8(status.message()));
  error.set_retry_after_ms(retry_after_ms);
  const grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace switchyard
