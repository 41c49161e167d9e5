// The few calls of the CUDA driver that the front needs for memory that clients share on a GPU. The driver is looked up
// when it is needed, not linked, because the front also runs on hosts without one.
//
// The types are those of the driver's binary interface (cuda.h), which does not change.
#pragma once

#include <cstddef>

#include "base/status.h"

namespace switchyard {

using CudaResult = int;  // 0 for success
using CudaDeviceHandle = int;
using CudaContext = void*;
using CudaPointer = unsigned long long;  // NOLINT(google-runtime-int): the driver's own type

struct CudaIpcHandle {
  char bytes[64];
};

struct CudaDriver {
  CudaResult (*init)(unsigned flags);
  CudaResult (*get_device_count)(int* count);
  CudaResult (*get_device)(CudaDeviceHandle* device, int ordinal);
  CudaResult (*retain_primary_context)(CudaContext* context, CudaDeviceHandle device);
  CudaResult (*release_primary_context)(CudaDeviceHandle device);
  CudaResult (*push_context)(CudaContext context);
  CudaResult (*pop_context)(CudaContext* context);
  CudaResult (*open_ipc_handle)(CudaPointer* pointer, CudaIpcHandle handle, unsigned flags);
  CudaResult (*close_ipc_handle)(CudaPointer pointer);
  CudaResult (*get_address_range)(CudaPointer* base, size_t* num_bytes, CudaPointer pointer);
  CudaResult (*copy_to_host)(void* to, CudaPointer from, size_t num_bytes);
  CudaResult (*copy_to_device)(CudaPointer to, const void* from, size_t num_bytes);
  CudaResult (*get_error_name)(CudaResult result, const char** name);
};

// Loads the calls from the shared library, which stays loaded. FailedPrecondition when it is not there or lacks a call.
absl::StatusOr<CudaDriver> LoadCudaDriver(const char* library = "libcuda.so.1");

// OK, or Internal with the driver's name for `result`.
absl::Status CudaStatus(const CudaDriver& driver, CudaResult result, absl::string_view what);

}  // namespace switchyard
