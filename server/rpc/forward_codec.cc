#include "server/rpc/forward_codec.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <bit>
#include <utility>
#include <vector>

#include "server/rpc/slice_stream.h"

namespace switchyard {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Reads one field of a known tag into `request`; false when the bytes end or contradict the field's type.
bool ReadField(CodedInputStream& input, uint32_t tag, DecodedForward* request, Chunks* chunks) {
  constexpr auto kText = WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
  constexpr auto kNumber = WireFormatLite::WIRETYPE_VARINT;
  uint64_t number = 0;
  uint32_t length = 0;
  switch (tag) {
    case WireFormatLite::MakeTag(v1::ForwardRequest::kModelFieldNumber, kText):
      return input.ReadVarint32(&length) && input.ReadString(&request->model, static_cast<int>(length));
    case WireFormatLite::MakeTag(v1::ForwardRequest::kLayerFieldNumber, kText):
      return input.ReadVarint32(&length) && input.ReadString(&request->layer, static_cast<int>(length));
    case WireFormatLite::MakeTag(v1::ForwardRequest::kRowsFieldNumber, kText):
      chunks->clear();  // the last one wins, as everywhere in protobuf
      return input.ReadVarint32(&length) && ReadChunks(input, length, chunks);
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
      request->gate_idx = static_cast<int64_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kTopKFieldNumber, kNumber):
      if (!input.ReadVarint64(&number)) return false;
      request->top_k = static_cast<int64_t>(number);
      return true;
    case WireFormatLite::MakeTag(v1::ForwardRequest::kCapacityFactorFieldNumber, WireFormatLite::WIRETYPE_FIXED64):
      if (!input.ReadLittleEndian64(&number)) return false;
      request->capacity_factor = std::bit_cast<double>(number);
      return true;
    default:
      return WireFormatLite::SkipField(&input, tag);
  }
}

}  // namespace

absl::StatusOr<DecodedForward> DecodeForward(const grpc::ByteBuffer& buffer) {
  SY_ASSIGN_OR_RETURN(const auto slices, SlicesOf(buffer));
  SliceStream stream(*slices);
  CodedInputStream input(&stream);
  DecodedForward request;
  Chunks chunks;
  while (const uint32_t tag = input.ReadTag()) {
    if (!ReadField(input, tag, &request, &chunks)) {
      return absl::InvalidArgumentError(absl::StrCat("the request is not a switchyard.v1.ForwardRequest: field ",
                                                     WireFormatLite::GetTagFieldNumber(tag),
                                                     " is malformed or cut short"));
    }
  }
  if (!input.ConsumedEntireMessage()) {
    return absl::InvalidArgumentError("the request is not a switchyard.v1.ForwardRequest: a field's tag is malformed");
  }
  request.rows = ChunkedRows(std::move(chunks), slices);
  return request;
}

grpc::ByteBuffer EncodeForward(const v1::ForwardResponse& rest, const TensorSlices& rows) {
  // Fields of one message may come in any order and in parts: everything else first, then the tag and the rows' bytes.
  TensorSlices slices = {HeadSlice(rest.SerializeAsString(), v1::ForwardResponse::kRowsFieldNumber, SizeOf(rows))};
  slices.insert(slices.end(), rows.begin(), rows.end());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace switchyard
