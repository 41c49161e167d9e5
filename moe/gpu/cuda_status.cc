#include "moe/gpu/cuda_status.h"

namespace switchyard {
namespace {

absl::StatusCode CodeOf(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorNoKernelImageForDevice:
      return absl::StatusCode::kFailedPrecondition;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();  // so that later checks do not report this error again; a sticky one stays
  return absl::Status(CodeOf(error),
                      absl::StrCat(call, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

absl::Status CheckDevice() {
  // This call does nothing, and always fails once the context is broken.
  if (const cudaError_t error = cudaFree(nullptr); error != cudaSuccess) {
    return absl::InternalError(
        absl::StrCat("the GPU is lost to this process: ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
