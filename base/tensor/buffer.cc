#include "base/tensor/buffer.h"

#include <cstdio>
#include <cstdlib>
#include <new>
#include <utility>

namespace switchyard {
namespace {

constexpr std::align_val_t kAlignment{64};

std::byte* AllocateOrDie(size_t num_bytes) {
  if (num_bytes == 0) return nullptr;
  void* const data = ::operator new(num_bytes, kAlignment, std::nothrow);
  if (data == nullptr) {
    std::fprintf(stderr, "out of memory: cannot allocate a buffer of %zu bytes\n", num_bytes);
    std::abort();
  }
  return static_cast<std::byte*>(data);
}

}  // namespace

HostBuffer::HostBuffer(size_t num_bytes) : data_(AllocateOrDie(num_bytes)), size_(num_bytes) {}

HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) ::operator delete(data_, kAlignment);
}

void HostBuffer::EnsureSize(size_t num_bytes) {
  if (num_bytes > size_) *this = HostBuffer(num_bytes);
}

HostMatrix HostMatrix::Allocate(DType dtype, int64_t num_rows, int64_t num_cols) {
  HostMatrix matrix;
  matrix.dtype = dtype;
  matrix.num_rows = num_rows;
  matrix.num_cols = num_cols;
  matrix.buffer = HostBuffer(matrix.view().size_bytes());
  return matrix;
}

}  // namespace switchyard
