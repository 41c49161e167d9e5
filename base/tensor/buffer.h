// Owning host memory, aligned to 64 bytes (a cache line, and the widest vector register).
#pragma once

#include <cstddef>

#include "base/tensor/tensor.h"

namespace switchyard {

// Uninitialised bytes; move-only. When memory runs out, it says so on stderr and aborts the process.
class HostBuffer {
 public:
  HostBuffer() = default;
  explicit HostBuffer(size_t num_bytes);
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Makes room for at least `num_bytes`; the contents are lost when the buffer has to grow. Never shrinks.
  void EnsureSize(size_t num_bytes);

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A matrix that owns its memory.
struct HostMatrix {
  HostBuffer buffer;
  DType dtype = DType::kF32;
  int64_t num_rows = 0;
  int64_t num_cols = 0;

  static HostMatrix Allocate(DType dtype, int64_t num_rows, int64_t num_cols);
  MatrixView view() { return {buffer.data(), dtype, num_rows, num_cols}; }
  ConstMatrixView view() const { return {buffer.data(), dtype, num_rows, num_cols}; }
};

}  // namespace switchyard
