// Bounds checks that every weight source makes.
#pragma once

#include "moe/weights/layer_spec.h"

namespace switchyard {

inline absl::Status CheckLayerIndex(const ModelSpec& spec, int layer_idx) {
  if (layer_idx >= 0 && layer_idx < spec.layers.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layer index: found ", layer_idx, ", expected 0 to ", spec.layers.size() - 1));
}

inline absl::Status CheckGateIndex(const ModelSpec& spec, int layer_idx, int gate_idx) {
  SY_RETURN_IF_ERROR(CheckLayerIndex(spec, layer_idx));
  const LayerSpec& layer = spec.layers[layer_idx];
  if (gate_idx >= 0 && gate_idx < layer.num_gates()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layer ", layer.name, ": gate index: found ", gate_idx, ", expected 0 to ", layer.num_gates() - 1));
}

inline absl::Status CheckExpertIndex(const ModelSpec& spec, int layer_idx, int expert_idx) {
  SY_RETURN_IF_ERROR(CheckLayerIndex(spec, layer_idx));
  const LayerSpec& layer = spec.layers[layer_idx];
  if (expert_idx >= 0 && expert_idx < layer.num_stored_experts()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer.name, ": expert index: found ", expert_idx,
                                                 ", expected 0 to ", layer.num_stored_experts() - 1));
}

}  // namespace switchyard
