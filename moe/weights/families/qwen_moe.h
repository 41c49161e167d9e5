// Common parts of the MoE models of the Qwen line: softmax over all experts, top-k, renormalised when norm_topk_prob
// says so; gated experts without biases under mlp; some layers dense.
#pragma once

#include "moe/weights/families/family.h"

namespace switchyard {

// The MoE layers, without a shared expert.
absl::StatusOr<std::vector<MoeBlock>> ReadQwenBlocks(const ConfigReader& config);

// The MoE layers with a shared expert of width shared_expert_intermediate_size, weighted by a sigmoid gate of its own.
absl::StatusOr<std::vector<MoeBlock>> ReadQwenBlocksWithShared(const ConfigReader& config);

}  // namespace switchyard
