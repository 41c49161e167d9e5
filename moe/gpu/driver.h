// The driver's functions, looked up at run time, so that programs start on machines without a driver.
#pragma once

#include <cuda.h>

#include "base/status.h"

namespace switchyard {

// The entry point `name`, as of CUDA 12.0. FAILED_PRECONDITION when the driver does not have it.
absl::StatusOr<void*> FindDriverFunction(const char* name);

// INTERNAL with the call and the driver's name for the error; RESOURCE_EXHAUSTED when device memory ran out.
absl::Status DriverStatus(CUresult result, const char* call);

}  // namespace switchyard

// Calls a function of the driver and returns its failure from the enclosing function. It is looked up once at each
// place.
#define SY_CU(function, ...)                                                                                       \
  do {                                                                                                             \
    static const absl::StatusOr<void*> sy_cu_found = ::switchyard::FindDriverFunction(#function);                  \
    SY_RETURN_IF_ERROR(sy_cu_found.status());                                                                      \
    SY_RETURN_IF_ERROR(                                                                                            \
        ::switchyard::DriverStatus(reinterpret_cast<decltype(&function)> (*sy_cu_found)(__VA_ARGS__), #function)); \
  } while (false)
