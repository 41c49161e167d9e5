// Loads a model's experts into an engine, with as many threads as the engine takes.
#pragma once

#include <functional>
#include <vector>

#include "moe/experts/expert_engine.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

struct ExpertToLoad {
  int layer_idx = 0;  // of the source, and LayerId in the engine
  int slot = 0;
  int expert_idx = 0;
};

// Returns when all are loaded or, after an error, when every thread has stopped: the first error, which names layer and
// expert. Reading from the source is serialised; what takes the time, fetching and copying the weights' pages, is not.
// `loaded` is called after each expert, by one thread at a time.
absl::Status LoadExperts(WeightSource& source, ExpertEngine& engine, const std::vector<ExpertToLoad>& experts,
                         const std::function<void(const ExpertToLoad&)>& loaded);

}  // namespace switchyard
