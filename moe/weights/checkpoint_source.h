// Weights from a checkpoint folder. Matrices are views into the mapped files; only a matrix that its file does not
// align to its element is copied, for as long as its expert is in use.
#pragma once

#include <memory>
#include <string>

#include "moe/weights/weight_source.h"

namespace switchyard {

// As OpenWeightSource, for a folder.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointSource(const std::string& folder);

}  // namespace switchyard
