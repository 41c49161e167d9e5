// GPU memory that other processes of this host map, too: one rank's memory in which its peers' kernels write.
//
//   auto memory = *SharedDeviceMemory::Create(num_bytes);    // on the current device
//   UniqueFd fd = *memory.Export();                          // … passed to a peer over a Unix socket
//   auto mapped = *SharedDeviceMemory::Map(fd.get(), num_bytes);
//
// The memory exists until every process that has it mapped, or holds a descriptor of it, has let go of it or has ended.
// So a kernel that still writes while the owner is killed, or has left the group, harms nothing.
//
// Uses the driver's virtual memory management (cuMemCreate and cuMemMap). Move-only; errors while freeing are ignored,
// because a lost device cannot free anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {

class SharedDeviceMemory {
 public:
  SharedDeviceMemory() = default;
  // At least `num_bytes` of the current device's memory, uninitialised. FAILED_PRECONDITION where the device or the
  // driver cannot share memory by descriptor.
  static absl::StatusOr<SharedDeviceMemory> Create(size_t num_bytes);
  // Maps memory that another process has created with the same `num_bytes`, for the current device. FAILED_PRECONDITION
  // when that cannot reach the owner's memory.
  static absl::StatusOr<SharedDeviceMemory> Map(int fd, size_t num_bytes);
  SharedDeviceMemory(SharedDeviceMemory&& other) noexcept
      : handle_(std::exchange(other.handle_, 0)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  SharedDeviceMemory& operator=(SharedDeviceMemory&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~SharedDeviceMemory();

  absl::StatusOr<UniqueFd> Export() const;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  absl::Status MapForCurrentDevice(size_t num_bytes);

  unsigned long long handle_ = 0;  // NOLINT(google-runtime-int): the driver's type
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Whether the current device can share its memory by descriptor, and reaches the memory of every other visible GPU.
bool CanReachAllDevices();

}  // namespace switchyard
