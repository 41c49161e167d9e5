// Tensors in memory that clients share with this server, instead of in messages (--allow_client_shm).
//
// Bytes are copied out of a region once, before anything is computed, and into it once, when a request's answer is
// complete. So whatever the client does to the memory meanwhile, it changes no step and harms no other client. Short
// copies are made at once. Threads of this class make the copies that may take long.
//
// Thread-safe. Outlives every call that uses it.
#pragma once

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "server/api/client_memory/cuda_shared_memory.h"
#include "server/api/client_memory/shared_memory_region.h"
#include "server/api/client_memory/shared_memory_registry.h"
#include "server/api/client_memory/task_threads.h"

namespace switchyard {

// The place of a tensor: [offset, offset + byte_size) of a region that has room for it.
struct TensorPlace {
  RegionPtr region;
  std::string region_name;
  uint64_t offset = 0;
  uint64_t byte_size = 0;
};

struct PlacedOutput {
  TensorPlace place;
  std::vector<grpc::Slice> bytes;  // in this order; at most place.byte_size in all
};

class ClientMemory {
 public:
  // `max_held_bytes` bounds the copies of inputs that are held at a time. `cuda_library` is the file name of the CUDA
  // driver's library.
  ClientMemory(int64_t max_held_bytes, std::string cuda_library = "libcuda.so.1");

  SharedMemoryRegistry& registry() { return registry_; }
  // The threads, for other work that may take long.
  TaskThreads& threads() { return threads_; }

  // Both may take long, so call them on `threads`. Errors are those of OpenSystemMemory, of CudaDevices and of the
  // registry.
  absl::Status RegisterSystem(const std::string& owner, const std::string& name, const std::string& key,
                              uint64_t offset, uint64_t byte_size);
  absl::Status RegisterCuda(const std::string& owner, const std::string& name, const std::string& raw_handle,
                            int64_t device_id, uint64_t byte_size);

  // Copies the bytes at a place. ResourceExhausted when too much is held already, or the region's error. `done` is
  // called once, on this thread or another.
  struct HostBytes {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;
  };
  using ReadDone = std::function<void(absl::StatusOr<HostBytes>)>;
  void Read(const TensorPlace& place, ReadDone done);

  // Writes all outputs, in order, until one fails. `done` is called once, on this thread or another.
  void Write(std::vector<PlacedOutput> outputs, std::function<void(const absl::Status&)> done);

 private:
  class Budget;
  class Copy;

  absl::StatusOr<std::shared_ptr<CudaDevices>> Cuda();

  const std::string cuda_library_;
  SharedMemoryRegistry registry_;
  const std::shared_ptr<Budget> budget_;
  Mutex mu_;
  std::shared_ptr<CudaDevices> cuda_ ABSL_GUARDED_BY(mu_);  // made when first needed
  TaskThreads threads_;                                     // last, so that they end first
};

}  // namespace switchyard
