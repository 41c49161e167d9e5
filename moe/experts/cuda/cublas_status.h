// The bridge from cuBLAS's errors to Status.
#pragma once

#include <cublas_v2.h>

#include "base/status.h"

// Runs a cuBLAS call and returns its failure from the enclosing function.
#define SY_CUBLAS(call) SY_RETURN_IF_ERROR(::switchyard::CublasStatus((call), #call))

namespace switchyard {

// OK for success, RESOURCE_EXHAUSTED when memory ran out, otherwise INTERNAL, with the call and cuBLAS's own text.
inline absl::Status CublasStatus(cublasStatus_t error, const char* call) {
  if (error == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const auto code =
      error == CUBLAS_STATUS_ALLOC_FAILED ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal;
  return absl::Status(code, absl::StrCat(call, ": ", cublasGetStatusName(error), ": ", cublasGetStatusString(error)));
}

}  // namespace switchyard
