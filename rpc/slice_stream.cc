#include "rpc/slice_stream.h"

#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <utility>

namespace switchyard {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

bool SliceStream::Next(const void** data, int* size) {
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

void SliceStream::BackUp(int count) {
  offset_ -= count;
  count_ -= count;
}

bool SliceStream::Skip(int count) {
  const void* data;
  int size;
  while (count > 0 && Next(&data, &size)) {
    if (size > count) BackUp(size - count);
    count -= std::min(size, count);
  }
  return count == 0;
}

absl::StatusOr<std::shared_ptr<const std::vector<grpc::Slice>>> SlicesOf(const grpc::ByteBuffer& buffer) {
  auto slices = std::make_shared<std::vector<grpc::Slice>>();
  if (!buffer.Dump(slices.get()).ok()) return absl::InternalError("the request's bytes cannot be read");
  return std::shared_ptr<const std::vector<grpc::Slice>>(std::move(slices));
}

size_t SizeOf(const TensorSlices& tensor) {
  size_t num_bytes = 0;
  for (const grpc::Slice& slice : tensor) num_bytes += slice.size();
  return num_bytes;
}

bool ReadChunks(CodedInputStream& input, uint32_t num_bytes, Chunks* chunks) {
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

grpc::Slice HeadSlice(std::string head, int field_number, size_t num_bytes) {
  {
    StringOutputStream stream(&head);
    CodedOutputStream output(&stream);
    output.WriteTag(WireFormatLite::MakeTag(field_number, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
    output.WriteVarint32(static_cast<uint32_t>(num_bytes));
  }
  return grpc::Slice(head);
}

}  // namespace switchyard
