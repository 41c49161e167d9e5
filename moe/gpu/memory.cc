#include "moe/gpu/memory.h"

#include "moe/gpu/cuda_status.h"

namespace switchyard {

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(size_t num_bytes) {
  DeviceBuffer buffer;
  if (num_bytes == 0) return buffer;
  void* data = nullptr;
  SY_RETURN_IF_ERROR(
      Annotate(CudaStatus(cudaMalloc(&data, num_bytes), "cudaMalloc"), absl::StrCat(num_bytes, " bytes")));
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = num_bytes;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) (void)cudaFree(data_);
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(size_t num_bytes) {
  PinnedBuffer buffer;
  if (num_bytes == 0) return buffer;
  void* data = nullptr;
  SY_RETURN_IF_ERROR(Annotate(CudaStatus(cudaHostAlloc(&data, num_bytes, cudaHostAllocPortable), "cudaHostAlloc"),
                              absl::StrCat(num_bytes, " bytes")));
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = num_bytes;
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
}

absl::StatusOr<PinnedRegion> PinnedRegion::Lock(void* data, size_t num_bytes) {
  PinnedRegion region;
  if (num_bytes == 0) return region;
  SY_RETURN_IF_ERROR(
      Annotate(CudaStatus(cudaHostRegister(data, num_bytes, cudaHostRegisterPortable), "cudaHostRegister"),
               absl::StrCat(num_bytes, " bytes")));
  region.data_ = data;
  return region;
}

PinnedRegion::~PinnedRegion() {
  if (data_ != nullptr) (void)cudaHostUnregister(data_);
}

namespace {

cudaMemoryType TypeOf(const void* data) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, data) == cudaSuccess) return attributes.type;
  (void)cudaGetLastError();
  return cudaMemoryTypeUnregistered;
}

}  // namespace

bool IsDeviceMemory(const void* data) { return TypeOf(data) == cudaMemoryTypeDevice; }

bool IsDeviceReachable(const void* data) { return TypeOf(data) != cudaMemoryTypeUnregistered; }

}  // namespace switchyard
