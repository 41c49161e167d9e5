// What the MoE models of the Qwen line have in common: softmax over all experts, top-k, renormalised when
// norm_topk_prob says so; gated experts without biases under mlp; some layers dense.
#pragma once

#include "moe/weights/family.h"

namespace switchyard {

// Those layers, without a shared expert.
absl::StatusOr<std::vector<MoeBlock>> ReadQwenBlocks(const ConfigReader& config);

// With one of shared_expert_intermediate_size, which a sigmoid gate of its own weighs.
absl::StatusOr<std::vector<MoeBlock>> ReadQwenBlocksWithShared(const ConfigReader& config);

}  // namespace switchyard
