// Reads a received message by hand, with protobuf's coded stream over gRPC's slices. Tensor bytes stay where they are.
#pragma once

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace switchyard {

// Presents slices as one stream, without copying. The slices must outlive it.
class SliceStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit SliceStream(const std::vector<grpc::Slice>& slices) : slices_(slices) {}

  bool Next(const void** data, int* size) override;
  void BackUp(int count) override;
  bool Skip(int count) override;
  int64_t ByteCount() const override { return count_; }

 private:
  const std::vector<grpc::Slice>& slices_;
  size_t index_ = 0;
  size_t offset_ = 0;  // in slices_[index_]
  int64_t count_ = 0;
};

// The slices of a message. They share its bytes. Internal when gRPC cannot give them.
absl::StatusOr<std::shared_ptr<const std::vector<grpc::Slice>>> SlicesOf(const grpc::ByteBuffer& buffer);

// The bytes of one tensor, spread over several slices.
using TensorSlices = std::vector<grpc::Slice>;
size_t SizeOf(const TensorSlices& tensor);

using Chunks = std::vector<std::span<const std::byte>>;

// Appends views of the next `num_bytes`, where they lie. False when the stream or its limit ends before.
bool ReadChunks(google::protobuf::io::CodedInputStream& input, uint32_t num_bytes, Chunks* chunks);

// A slice with the bytes that precede a field's value: `head`, which holds complete fields, then the field's tag and
// length.
grpc::Slice HeadSlice(std::string head, int field_number, size_t num_bytes);

}  // namespace switchyard
