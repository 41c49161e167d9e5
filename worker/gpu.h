// A worker's GPU. Only in builds with CUDA.
#pragma once

#include <memory>

#include "worker/device.h"

namespace switchyard {

// Makes GPU `number` current for the calling thread, which is the one that Device's calls come from.
absl::StatusOr<std::unique_ptr<Device>> OpenGpu(int number, const WorkerOptions& options);

}  // namespace switchyard
