// Common parts of encoder-decoder models: two stacks of layers, each with its own path and its own sparse layers.
#pragma once

#include "moe/weights/families/family.h"

namespace switchyard {

// Bounds of what the configuration of an encoder-decoder model may say.
inline constexpr int64_t kMaxSparseStep = 10'000;
inline constexpr int64_t kMaxExpertCapacity = int64_t{1} << 40;  // rows

struct SparseStack {
  std::string name;  // "encoder": its layers are "encoder.0", …
  std::string path;  // with "#" for the layer
  int num_layers = 0;
  int64_t step = 0;  // 0: no sparse layers
};

// The blocks of each stack in turn: its layers L with (L + 1) % step == 0, or, with `from_second`, L % step == 1 (every
// layer when the step is 1).
std::vector<MoeBlock> StackBlocks(const MoeBlock& block, const std::vector<SparseStack>& stacks, bool from_second);

}  // namespace switchyard
