// Common parts of DeepSeek's MoE models and of those built after them: experts under mlp from a certain layer on,
// shared experts beside them as one FFN, experts in groups of which only the best may be chosen from, weights scaled.
//
// Layers that predict further tokens (num_nextn_predict_layers) are stored behind the last of num_hidden_layers and are
// not served.
#pragma once

#include "moe/weights/families/family.h"

namespace switchyard {

// Reads sizes, shared experts and names, and of the gate only top_k and scale.
absl::StatusOr<MoeBlock> ReadDeepseekBlock(const ConfigReader& config);

// Reads n_group and topk_group. `score` says how groups compete.
absl::Status ReadGroups(const ConfigReader& config, GroupScore score, LayerSpec* spec);

// `block` in every layer that has experts.
absl::StatusOr<std::vector<MoeBlock>> RepeatDeepseekBlock(const ConfigReader& config, const MoeBlock& block);

// The blocks of DeepSeek-V3 and of all models with the same gate: sigmoid scores; experts compete by score + correction
// within the groups whose two best experts have the largest sums; weights ÷ (sum + 1e-20) when norm_topk_prob says so,
// × routed_scaling_factor.
absl::StatusOr<std::vector<MoeBlock>> ReadDeepseekV3Blocks(const ConfigReader& config);

}  // namespace switchyard
