#include "server/rpc/forward_codec.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>

#include <bit>
#include <utility>
#include <vector>

namespace switchyard {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

// Presents slices as one stream, without copying.
class SliceStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit SliceStream(const std::vector<grpc::Slice>& slices) : slices_(slices) {}

  bool Next(const void** data, int* size) override {
    while (index_ < slices_.size() && offset_ == slices_[index_].size()) {
      ++index_;
      offset_ = 0;
    }
    if (index_ == slices_.size()) return false;
    *data = slices_[index_].begin() + offset_;
    *size = static_cast<int>(slices_[index_].size() - offset_);
    offset_ = slices_[index_].size();
    count_ += *size;
    return true;
  }
  void BackUp(int count) override {
    offset_ -= count;
    count_ -= count;
  }
  bool Skip(int count) override {
    const void* data;
    int size;
    while (count > 0 && Next(&data, &size)) {
      if (size > count) BackUp(size - count);
      count -= std::min(size, count);
    }
    return count == 0;
  }
  int64_t ByteCount() const override { return count_; }

 private:
  const std::vector<grpc::Slice>& slices_;
  size_t index_ = 0;
  size_t offset_ = 0;
  int64_t count_ = 0;
};

// Views of the next `num_bytes`, as they lie.
bool ReadChunks(CodedInputStream& input, uint32_t num_bytes, std::vector<std::span<const std::byte>>* chunks) {
  while (num_bytes > 0) {
    const void* data;
    int size;
    if (!input.GetDirectBufferPointer(&data, &size)) return false;
    const int taken = static_cast<int>(std::min<uint32_t>(size, num_bytes));
    chunks->push_back({static_cast<const std::byte*>(data), static_cast<size_t>(taken)});
    if (!input.Skip(taken)) return false;
    num_bytes -= taken;
  }
  return true;
}

// Reads one field of a known tag into `request`; false when the bytes end or contradict the field's type.
bool ReadField(CodedInputStream& input, uint32_t tag, DecodedForward* request,
               std::vector<std::span<const std::byte>>* chunks) {
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
  auto slices = std::make_shared<std::vector<grpc::Slice>>();
  if (!buffer.Dump(slices.get()).ok()) return absl::InternalError("the request's bytes cannot be read");
  SliceStream stream(*slices);
  CodedInputStream input(&stream);
  DecodedForward request;
  std::vector<std::span<const std::byte>> chunks;
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
  request.rows = ChunkedRows(std::move(chunks), std::move(slices));
  return request;
}

grpc::ByteBuffer EncodeForward(const v1::ForwardResponse& rest, const grpc::Slice& rows) {
  // Fields of one message may come in any order and in parts: everything else first, then the tag and the rows' bytes.
  std::string head = rest.SerializeAsString();
  {
    google::protobuf::io::StringOutputStream stream(&head);
    CodedOutputStream output(&stream);
    output.WriteTag(
        WireFormatLite::MakeTag(v1::ForwardResponse::kRowsFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
    output.WriteVarint32(static_cast<uint32_t>(rows.size()));
  }
  const grpc::Slice slices[] = {grpc::Slice(head), rows};
  return grpc::ByteBuffer(slices, 2);
}

}  // namespace switchyard
