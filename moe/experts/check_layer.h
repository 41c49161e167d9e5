// Checks whether the engines can compute a layer. Errors name the layer and the field. Pure.
#pragma once

#include "base/status.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// INVALID_ARGUMENT unless widths are positive and counts are not negative.
absl::Status CheckLayerSizes(const LayerSpec& layer, int num_slots);

// Whether the expert's gate and up are bounded or shifted, so that the formula is more than an activation.
inline bool IsClamped(const ExpertSpec& expert) { return expert.limit != 0 || expert.up_offset != 0; }

// For layers whose experts the engine computes by ExpertSpec's formula (not custom experts). INVALID_ARGUMENT for
// fields that contradict each other or are not finite numbers, UNIMPLEMENTED for a limit or an up_offset with an
// activation other than SiLU and quick-GELU, because no engine implements that.
absl::Status CheckExpertFormula(const LayerSpec& layer);

}  // namespace switchyard
