#include "moe/gpu/driver.h"

#include <cuda_runtime.h>

#include "moe/gpu/cuda_status.h"

namespace switchyard {

absl::StatusOr<void*> FindDriverFunction(const char* name) {
  constexpr unsigned kVersion = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  SY_CUDA(cudaGetDriverEntryPointByVersion(name, &function, kVersion, cudaEnableDefault, &found));
  if (found == cudaDriverEntryPointSuccess) return function;
  return absl::FailedPreconditionError(absl::StrCat("the GPU driver has no ", name, ": it is older than CUDA 12"));
}

absl::Status DriverStatus(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const char* name = "unknown error";
  if (const auto find = FindDriverFunction("cuGetErrorName"); find.ok()) {
    (void)reinterpret_cast<decltype(&cuGetErrorName)> (*find)(result, &name);
  }
  const std::string text = absl::StrCat(call, ": ", name);
  return result == CUDA_ERROR_OUT_OF_MEMORY ? absl::ResourceExhaustedError(text) : absl::InternalError(text);
}

}  // namespace switchyard
