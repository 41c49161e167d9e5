// The device a worker computes on, and what comes with it: engines, an exchange, and memory that it can reach.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moe/exchange/communicator.h"
#include "moe/experts/expert_engine.h"
#include "worker/options.h"

namespace switchyard {

// Thread-compatible. Engines and communicators end before it.
class Device {
 public:
  virtual ~Device() = default;

  // "cpu" or "cuda:1".
  virtual std::string name() const = 0;
  // Names of the compute types that its engines have.
  virtual std::vector<std::string> compute_dtypes() const = 0;
  // "gloo" or "nccl"; all ranks of a group must have the same.
  virtual std::string exchange_name() const = 0;

  virtual absl::StatusOr<std::unique_ptr<ExpertEngine>> MakeEngine(DType compute_dtype) = 0;
  virtual std::unique_ptr<CommunicatorFactory> MakeExchange() = 0;

  // Makes memory that outlives the device (whole pages) quick to reach for it. Where that fails the memory can be used
  // all the same, only slower.
  virtual absl::Status LockMemory(std::byte* /*data*/, size_t /*num_bytes*/) { return absl::OkStatus(); }
};

// Opens what WorkerOptions::device asks for. "auto" takes the CPU, and says so in the log, unless this build and host
// have a GPU for every worker that the front starts. FAILED_PRECONDITION, with what to do, for a GPU that is not there;
// INVALID_ARGUMENT for a name that is none.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const WorkerOptions& options);
using DeviceOpener = absl::StatusOr<std::unique_ptr<Device>> (*)(const WorkerOptions& options);

// The number of the GPU that WorkerOptions::device means where there are `num_gpus`, or -1 for the CPU. Two ranks
// cannot share a GPU, so the front's worker i gets GPU i. `why_none` says why there is no GPU where there is none.
absl::StatusOr<int> ChooseGpu(const WorkerOptions& options, int num_gpus, const std::string& why_none);

}  // namespace switchyard
