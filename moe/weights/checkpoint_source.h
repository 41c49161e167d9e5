// Weights from a checkpoint folder. Matrices are views into the mapped files. A matrix that its file does not hold
// contiguous, aligned and unquantised is copied, for as long as its expert is in use.
#pragma once

#include <memory>
#include <string>

#include "moe/weights/weight_source.h"

namespace switchyard {

// OpenWeightSource for a folder.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointSource(const std::string& folder);

}  // namespace switchyard
