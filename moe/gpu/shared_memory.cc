#include "moe/gpu/shared_memory.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include "moe/gpu/cuda_status.h"
#include "moe/gpu/driver.h"

namespace switchyard {
namespace {

static_assert(sizeof(CUmemGenericAllocationHandle) == sizeof(unsigned long long));  // NOLINT(google-runtime-int)

absl::StatusOr<int> CurrentDevice() {
  int device = 0;
  SY_CUDA(cudaGetDevice(&device));
  SY_CUDA(cudaFree(nullptr));  // makes the device's context, which the driver's functions need
  return device;
}

CUmemAllocationProp Properties(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
  return properties;
}

// `num_bytes` as whole pages of the current device.
absl::StatusOr<size_t> WholePages(size_t num_bytes) {
  SY_ASSIGN_OR_RETURN(const int device, CurrentDevice());
  const CUmemAllocationProp properties = Properties(device);
  size_t page = 0;
  SY_CU(cuMemGetAllocationGranularity, &page, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
  return (num_bytes + page - 1) / page * page;
}

CUdeviceptr Pointer(std::byte* data) { return reinterpret_cast<CUdeviceptr>(data); }

absl::Status Unmap(std::byte* data, size_t size) {
  SY_CU(cuMemUnmap, Pointer(data), size);
  return absl::OkStatus();
}

absl::Status FreeAddresses(std::byte* data, size_t size) {
  SY_CU(cuMemAddressFree, Pointer(data), size);
  return absl::OkStatus();
}

absl::Status Release(CUmemGenericAllocationHandle handle) {
  SY_CU(cuMemRelease, handle);
  return absl::OkStatus();
}

absl::StatusOr<bool> SharesMemory(int device) {
  int is_supported = 0;
  SY_CU(cuDeviceGetAttribute, &is_supported, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device);
  return is_supported != 0;
}

}  // namespace

absl::StatusOr<SharedDeviceMemory> SharedDeviceMemory::Create(size_t num_bytes) {
  SY_ASSIGN_OR_RETURN(const int device, CurrentDevice());
  SY_ASSIGN_OR_RETURN(const bool shares_memory, SharesMemory(device));
  if (!shares_memory) return absl::FailedPreconditionError("this GPU cannot share memory with other processes");
  SY_ASSIGN_OR_RETURN(const size_t size, WholePages(num_bytes));
  const CUmemAllocationProp properties = Properties(device);
  SharedDeviceMemory memory;
  SY_CU(cuMemCreate, &memory.handle_, size, &properties, 0);
  SY_RETURN_IF_ERROR(memory.MapForCurrentDevice(size));
  return memory;
}

absl::StatusOr<SharedDeviceMemory> SharedDeviceMemory::Map(int fd, size_t num_bytes) {
  SY_ASSIGN_OR_RETURN(const size_t size, WholePages(num_bytes));
  SharedDeviceMemory memory;
  SY_CU(cuMemImportFromShareableHandle, &memory.handle_, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
        CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  if (absl::Status mapped = memory.MapForCurrentDevice(size); !mapped.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this GPU cannot reach the memory of the other: ", mapped.message()));
  }
  return memory;
}

absl::Status SharedDeviceMemory::MapForCurrentDevice(size_t num_bytes) {
  SY_ASSIGN_OR_RETURN(const int device, CurrentDevice());
  CUdeviceptr address = 0;
  SY_CU(cuMemAddressReserve, &address, num_bytes, 0, 0, 0);
  data_ = reinterpret_cast<std::byte*>(address);
  size_ = num_bytes;
  SY_CU(cuMemMap, address, num_bytes, 0, handle_, 0);
  const CUmemAccessDesc access{{CU_MEM_LOCATION_TYPE_DEVICE, {device}}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  SY_CU(cuMemSetAccess, address, num_bytes, &access, 1);
  return absl::OkStatus();
}

SharedDeviceMemory::~SharedDeviceMemory() {
  if (data_ != nullptr) {
    Unmap(data_, size_).IgnoreError();
    FreeAddresses(data_, size_).IgnoreError();
  }
  if (handle_ != 0) Release(handle_).IgnoreError();
}

absl::StatusOr<UniqueFd> SharedDeviceMemory::Export() const {
  int fd = -1;
  SY_CU(cuMemExportToShareableHandle, &fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
  return UniqueFd(fd);
}

bool CanReachAllDevices() {
  const auto reaches_all = []() -> absl::StatusOr<bool> {
    SY_ASSIGN_OR_RETURN(const int device, CurrentDevice());
    SY_ASSIGN_OR_RETURN(bool reaches, SharesMemory(device));
    int num_devices = 0;
    SY_CUDA(cudaGetDeviceCount(&num_devices));
    for (int other = 0; reaches && other < num_devices; ++other) {
      int can_access = 1;
      if (other != device) SY_CUDA(cudaDeviceCanAccessPeer(&can_access, device, other));
      reaches = can_access != 0;
    }
    return reaches;
  }();
  return reaches_all.ok() && *reaches_all;
}

}  // namespace switchyard
