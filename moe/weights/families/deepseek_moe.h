// What DeepSeek's MoE models, and those built after them, have in common: experts under mlp from a certain layer on,
// shared experts beside them as one FFN, experts in groups of which only some may be chosen from, weights scaled.
//
// Layers that predict further tokens (num_nextn_predict_layers) are stored behind the last of num_hidden_layers and are
// not served.
#pragma once

#include "moe/weights/family.h"

namespace switchyard {

// Sizes, shared experts, scale and names; nothing of the gate but top_k and scale.
absl::StatusOr<MoeBlock> ReadDeepseekBlock(const ConfigReader& config);

// n_group and topk_group. `score` says how groups compete.
absl::Status ReadGroups(const ConfigReader& config, GroupScore score, LayerSpec* spec);

// `block` in every layer that has experts.
absl::StatusOr<std::vector<MoeBlock>> RepeatDeepseekBlock(const ConfigReader& config, const MoeBlock& block);

// The blocks of DeepSeek-V3 and all whose gate is the same: sigmoid scores; experts compete by score + correction in
// the best groups by their two best; weights ÷ (sum + 1e-20) when norm_topk_prob says so, × routed_scaling_factor.
absl::StatusOr<std::vector<MoeBlock>> ReadDeepseekV3Blocks(const ConfigReader& config);

}  // namespace switchyard
