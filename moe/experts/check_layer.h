// What a layer must be for the engines to compute it. Errors name the layer and the field. Pure.
#pragma once

#include "base/status.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// INVALID_ARGUMENT unless widths are positive and counts are not negative.
absl::Status CheckLayerSizes(const LayerSpec& layer, int num_slots);

// Whether the expert's gate and up are bounded or shifted: the form of the formula that needs more than an activation.
inline bool IsClamped(const ExpertSpec& expert) { return expert.limit != 0 || expert.up_offset != 0; }

// Of experts that an engine computes itself: INVALID_ARGUMENT for fields that contradict each other or are no numbers,
// UNIMPLEMENTED for a limit or an up_offset beside an activation other than SiLU and quick-GELU, which no engine has.
absl::Status CheckExpertFormula(const LayerSpec& layer);

}  // namespace switchyard
