#include "moe/weights/layer_spec.h"

namespace switchyard {

std::string_view ActivationName(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kRelu:
      return "relu";
  }
  return "unknown";
}

absl::StatusOr<Activation> ParseActivation(std::string_view name) {
  for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
    if (name == ActivationName(activation)) return activation;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown activation '", std::string(name), "': expected silu, gelu or relu"));
}

int64_t ExpertBytes(const LayerSpec& layer, DType dtype) {
  const int64_t num_matrices = layer.expert.gated ? 3 : 2;
  const int64_t num_biases = layer.expert.biased ? layer.expert_dim + layer.hidden_dim : 0;
  return (num_matrices * layer.hidden_dim * layer.expert_dim + num_biases) * static_cast<int64_t>(SizeOf(dtype));
}

}  // namespace switchyard
