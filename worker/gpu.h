// A worker's GPU. Only in builds with CUDA.
#pragma once

#include <memory>

#include "worker/device.h"

namespace switchyard {

// Opens GPU `number` and makes it current for the calling thread. All calls of the device must come from this thread.
absl::StatusOr<std::unique_ptr<Device>> OpenGpu(int number, const WorkerOptions& options);

}  // namespace switchyard
