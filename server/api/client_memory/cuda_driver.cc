#include "server/api/client_memory/cuda_driver.h"

#include <dlfcn.h>

namespace switchyard {
namespace {

template <typename Function>
absl::Status Find(void* library, const char* symbol, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (*function != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the CUDA driver has no ", symbol, "; is it too old?"));
}

}  // namespace

absl::StatusOr<CudaDriver> LoadCudaDriver(const char* library) {
  void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return absl::FailedPreconditionError(absl::StrCat("no CUDA driver: ", dlerror()));
  CudaDriver driver;
  SY_RETURN_IF_ERROR(Find(handle, "cuInit", &driver.init));
  SY_RETURN_IF_ERROR(Find(handle, "cuDeviceGetCount", &driver.get_device_count));
  SY_RETURN_IF_ERROR(Find(handle, "cuDeviceGet", &driver.get_device));
  SY_RETURN_IF_ERROR(Find(handle, "cuDevicePrimaryCtxRetain", &driver.retain_primary_context));
  SY_RETURN_IF_ERROR(Find(handle, "cuDevicePrimaryCtxRelease_v2", &driver.release_primary_context));
  SY_RETURN_IF_ERROR(Find(handle, "cuCtxPushCurrent_v2", &driver.push_context));
  SY_RETURN_IF_ERROR(Find(handle, "cuCtxPopCurrent_v2", &driver.pop_context));
  SY_RETURN_IF_ERROR(Find(handle, "cuIpcOpenMemHandle_v2", &driver.open_ipc_handle));
  SY_RETURN_IF_ERROR(Find(handle, "cuIpcCloseMemHandle", &driver.close_ipc_handle));
  SY_RETURN_IF_ERROR(Find(handle, "cuMemGetAddressRange_v2", &driver.get_address_range));
  SY_RETURN_IF_ERROR(Find(handle, "cuMemcpyDtoH_v2", &driver.copy_to_host));
  SY_RETURN_IF_ERROR(Find(handle, "cuMemcpyHtoD_v2", &driver.copy_to_device));
  SY_RETURN_IF_ERROR(Find(handle, "cuGetErrorName", &driver.get_error_name));
  return driver;
}

absl::Status CudaStatus(const CudaDriver& driver, CudaResult result, absl::string_view what) {
  if (result == 0) return absl::OkStatus();
  const char* name = nullptr;
  if (driver.get_error_name(result, &name) != 0 || name == nullptr) name = "an error without a name";
  return absl::InternalError(absl::StrCat(what, ": ", name, " (", result, ")"));
}

}  // namespace switchyard
