// Owners of GPU memory and of host memory that the GPU can reach. All are move-only and belong to the device that was
// current when they were made. They ignore errors when they free memory, because a lost device cannot free it.
#pragma once

#include <cstddef>
#include <utility>

#include "base/status.h"

namespace switchyard {

// Uninitialised device memory, aligned to 256 bytes.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static absl::StatusOr<DeviceBuffer> Allocate(size_t num_bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBuffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locked host memory; the GPU reads and writes it at the same address.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static absl::StatusOr<PinnedBuffer> Allocate(size_t num_bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedBuffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locks memory of another owner that outlives this object (a link's shared memory), so that a copy to or from it
// is a single DMA and kernels may access it directly.
class PinnedRegion {
 public:
  PinnedRegion() = default;
  // `data` must be page-aligned.
  static absl::StatusOr<PinnedRegion> Lock(void* data, size_t num_bytes);
  PinnedRegion(PinnedRegion&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  PinnedRegion& operator=(PinnedRegion&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~PinnedRegion();

 private:
  void* data_ = nullptr;
};

// Whether `data` is in a GPU's own memory.
bool IsDeviceMemory(const void* data);

// Whether a GPU can access `data` directly: page-locked or device memory.
bool IsDeviceReachable(const void* data);

}  // namespace switchyard
