// The KServe API's requests about shared memory: the parameters that place inputs and outputs there, and the calls that
// register memory.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "server/api/client_memory/client_memory.h"
#include "server/api/kserve/kserve_parameters.h"

namespace switchyard {

// The shared memory that a caller may use. `memory` is null when the server allows none; then every function returns
// Unimplemented, with the name of the flag.
struct MemoryAccess {
  ClientMemory* memory = nullptr;
  std::string owner;  // server/api/calls/memory_owner.h
};

// The place of a tensor, from its parameters shared_memory_region, _byte_size and _offset; nullopt when it is in no
// region. Errors name the parameter, but not the region.
absl::StatusOr<std::optional<TensorPlace>> FindPlace(const InferParameters& parameters, const MemoryAccess& access);

// Adds the parameters that say where an output of `num_bytes` was put.
void DescribePlace(const TensorPlace& place, uint64_t num_bytes, InferParameters* parameters);

// The calls that list, register and unregister memory.
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
