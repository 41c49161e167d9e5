// Loads a model's experts into an engine: reading runs ahead of packing, each with its own threads.
//
//   readers   take experts in the order of their files, so that every file is read once and from front to back, and
//   stay
//             at most kReadAheadBytes ahead of what is packed
//   loaders   hand what was read to the engine, in the same order, as many at once as it takes
#pragma once

#include <cstdint>
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

// Where the page cache consists of small pages, one reader gets some 90 % of what two do, and four get no more.
inline constexpr int kNumReaders = 2;

// Counted in the source's type, read and not yet loaded. More where the experts being loaded and one each to read ahead
// take more.
inline constexpr int64_t kReadAheadBytes = 64 << 20;

// Returns when all are loaded or, after an error, when every thread has stopped: the error of the first expert that has
// one, which names layer and expert. `loaded` is called after each expert, by one thread at a time; its error ends the
// loading like one of the expert.
absl::Status LoadExperts(WeightSource& source, ExpertEngine& engine, const std::vector<ExpertToLoad>& experts,
                         const std::function<absl::Status(const ExpertToLoad&)>& loaded);

}  // namespace switchyard
