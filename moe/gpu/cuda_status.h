// The bridge from CUDA's errors to Status: the call that failed, CUDA's name for the error and its own text.
#pragma once

#include <cuda_runtime.h>

#include "base/status.h"

// Runs a CUDA runtime call and returns its failure from the enclosing function.
#define SY_CUDA(call) SY_RETURN_IF_ERROR(::switchyard::CudaStatus((call), #call))

namespace switchyard {

// OK for cudaSuccess. RESOURCE_EXHAUSTED when device memory ran out, FAILED_PRECONDITION when there is no usable GPU or
// driver, otherwise INTERNAL.
absl::Status CudaStatus(cudaError_t error, const char* call);

// INTERNAL when an earlier "sticky" error (an illegal address, a hardware fault) has made the device unusable for this
// process. Only ending the process helps then.
absl::Status CheckDevice();

}  // namespace switchyard
