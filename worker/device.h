// The device that a worker computes on. It makes engines and an exchange, and locks memory for fast access.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moe/exchange/communicator.h"
#include "moe/experts/expert_engine.h"
#include "worker/options.h"

namespace switchyard {

// Thread-compatible. Engines and communicators must be destroyed before the device.
class Device {
 public:
  virtual ~Device() = default;

  // "cpu" or "cuda:1".
  virtual std::string name() const = 0;
  // Names of the compute types that its engines support.
  virtual std::vector<std::string> compute_dtypes() const = 0;
  // The exchanges it has, the best first: "shm", "tcp" and "gloo", or "direct" and "nccl". The front chooses one that
  // all ranks have.
  virtual std::vector<std::string> exchange_names() const = 0;

  virtual absl::StatusOr<std::unique_ptr<ExpertEngine>> MakeEngine(DType compute_dtype) = 0;
  // InvalidArgument for an exchange that it does not have.
  virtual absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MakeExchange(const std::string& name) = 0;

  // Speeds up the device's access to memory (whole pages), which must outlive the device. If this fails, the memory can
  // still be used, only more slowly.
  virtual absl::Status LockMemory(std::byte* /*data*/, size_t /*num_bytes*/) { return absl::OkStatus(); }
};

// Opens the device that WorkerOptions::device names. "auto" takes a GPU if this build and host have one for every
// worker that the front starts; otherwise it takes the CPU and logs that. FAILED_PRECONDITION, with advice, for a GPU
// that does not exist; INVALID_ARGUMENT for a name that is not valid.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const WorkerOptions& options);
using DeviceOpener = absl::StatusOr<std::unique_ptr<Device>> (*)(const WorkerOptions& options);

// The number of the GPU that WorkerOptions::device means on a host with `num_gpus` GPUs, or -1 for the CPU. Two ranks
// cannot share a GPU, so the front's worker i gets GPU i. `why_none` is the reason to report if there is no GPU.
absl::StatusOr<int> ChooseGpu(const WorkerOptions& options, int num_gpus, const std::string& why_none);

}  // namespace switchyard
