// Selection by every formula that GateSpec can express. Callers use select_experts.h. Pure.
#pragma once

#include <cstdint>
#include <span>

#include "moe/gating/select_experts.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// The destination of the choices: rows that lie `stride` entries apart.
struct RoutingRows {
  int32_t* expert_idx = nullptr;
  float* weight = nullptr;
  int64_t stride = 0;
};

// Whether some groups of experts are left out.
inline bool ExcludesGroups(const GateSpec& spec) { return spec.groups_kept < spec.num_groups; }

// Whether the weights of spec.top_k choices are normalised.
inline bool Normalizes(const GateSpec& spec) {
  return spec.normalization != Normalization::kNone && (spec.top_k > 1 || spec.normalizes_single);
}

// Fills in distinct experts with NaN weights.
void FillNanRow(int top_k, int32_t* expert_idx, float* weight);

// SelectExperts for every spec.
void SelectExpertsGenerally(const GateSpec& spec, std::span<const float> score_correction, const LogitRows& logits,
                            const RoutingRows& out);

}  // namespace switchyard
