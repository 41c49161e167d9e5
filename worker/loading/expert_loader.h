// Loads a model's experts into an engine. Reading runs ahead of packing, and each has its own threads:
//
//   readers   read experts in the order of their files, so that every file is read once and from front to back. They
//             stay at most kReadAheadBytes ahead of packing
//   loaders   pass the experts read to the engine in the same order, as many at once as the engine allows
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "moe/experts/expert_engine.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

struct ExpertToLoad {
  int layer_idx = 0;  // index in the source, and LayerId in the engine
  int slot = 0;
  int expert_idx = 0;
};

// Two readers suffice: where the page cache has small pages, one reader reaches about 90 % of the rate of two, and four
// are no faster than two.
inline constexpr int kNumReaders = 2;

// Bytes of experts that are being read, read or being loaded, at most, counted in the source's type. Two experts per
// loader are allowed even if they have more bytes.
inline constexpr int64_t kReadAheadBytes = 64 << 20;

// Called after each expert, by one thread at a time, with the digest of the bytes that were read (expert_digest.h). An
// error from it ends the loading like an error of the expert.
using ExpertLoadedFn = std::function<absl::Status(const ExpertToLoad& expert, uint64_t digest)>;

// Loads all experts. After an error it stops every thread and returns the error of the first failed expert in file
// order, which names layer and expert.
absl::Status LoadExperts(WeightSource& source, ExpertEngine& engine, const std::vector<ExpertToLoad>& experts,
                         const ExpertLoadedFn& loaded);

}  // namespace switchyard
