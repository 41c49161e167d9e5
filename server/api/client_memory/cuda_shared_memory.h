// Regions of GPU memory that another process of this host has exported with cudaIpcGetMemHandle.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "server/api/client_memory/cuda_driver.h"
#include "server/api/client_memory/shared_memory_region.h"

namespace switchyard {

// The GPUs of this process: the driver, and the primary context of each device that memory was opened on. Such a
// context takes some hundred MB on the device and is kept. Regions keep this object alive. Thread-safe.
class CudaDevices : public std::enable_shared_from_this<CudaDevices> {
 public:
  // FailedPrecondition says why CUDA does not work.
  static absl::StatusOr<std::shared_ptr<CudaDevices>> Create(const CudaDriver& driver);
  ~CudaDevices();

  // `raw_handle` is a cudaIpcMemHandle_t. InvalidArgument names raw_handle, device_id or byte_size, what was expected
  // and what came.
  absl::StatusOr<RegionPtr> Open(const std::string& raw_handle, int64_t device_id, uint64_t byte_size);

 private:
  friend class CudaRegion;

  CudaDevices(const CudaDriver& driver, int num_devices) : driver_(driver), num_devices_(num_devices) {}

  absl::StatusOr<CudaContext> ContextOf(int64_t device_id);
  // Runs `call` with `context` as the thread's current context.
  absl::Status In(CudaContext context, absl::string_view what, const std::function<CudaResult()>& call) const;

  const CudaDriver driver_;
  const int num_devices_;
  Mutex mu_;
  struct Retained {
    CudaDeviceHandle device = 0;
    CudaContext context = nullptr;
  };
  std::map<int64_t, Retained> retained_ ABSL_GUARDED_BY(mu_);  // by device id
};

}  // namespace switchyard
