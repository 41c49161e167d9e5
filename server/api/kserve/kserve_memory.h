// The KServe API's words for tensors in shared memory: the parameters of inputs and outputs, and the calls that
// register memory.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "server/api/client_memory/client_memory.h"
#include "server/api/kserve/kserve_parameters.h"

namespace switchyard {

// What a caller may use. `memory` is null when the server does not allow any; then everything is Unimplemented and
// names the flag.
struct MemoryAccess {
  ClientMemory* memory = nullptr;
  std::string owner;  // server/api/calls/memory_owner.h
};

// Where a tensor is by its parameters shared_memory_region, _byte_size and _offset; nullopt when it is in no region.
// Errors name the parameter, but no region.
absl::StatusOr<std::optional<TensorPlace>> FindPlace(const InferParameters& parameters, const MemoryAccess& access);

// Says of an output of `num_bytes` where it was put.
void DescribePlace(const TensorPlace& place, uint64_t num_bytes, InferParameters* parameters);

// The calls.
absl::Status ListMemory(const MemoryAccess& access, const inference::SystemSharedMemoryStatusRequest& request,
                        inference::SystemSharedMemoryStatusResponse* response);
absl::Status ListMemory(const MemoryAccess& access, const inference::CudaSharedMemoryStatusRequest& request,
                        inference::CudaSharedMemoryStatusResponse* response);
absl::Status RegisterMemory(const MemoryAccess& access, const inference::SystemSharedMemoryRegisterRequest& request);
absl::Status RegisterMemory(const MemoryAccess& access, const inference::CudaSharedMemoryRegisterRequest& request);
absl::Status UnregisterMemory(const MemoryAccess& access,
                              const inference::SystemSharedMemoryUnregisterRequest& request);
absl::Status UnregisterMemory(const MemoryAccess& access, const inference::CudaSharedMemoryUnregisterRequest& request);

}  // namespace switchyard
