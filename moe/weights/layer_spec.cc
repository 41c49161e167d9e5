#include "moe/weights/layer_spec.h"

#include "absl/strings/str_cat.h"

namespace switchyard {

std::string_view ActivationName(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kRelu:
      return "relu";
    case Activation::kGeluTanh:
      return "gelu_tanh";
    case Activation::kQuickGelu:
      return "quick_gelu";
  }
  return "unknown";
}

absl::StatusOr<Activation> ParseActivation(std::string_view name) {
  for (Activation activation :
       {Activation::kSilu, Activation::kGelu, Activation::kRelu, Activation::kGeluTanh, Activation::kQuickGelu}) {
    if (name == ActivationName(activation)) return activation;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown activation '", std::string(name), "': expected silu, gelu, relu, gelu_tanh or quick_gelu"));
}

int64_t ExpertBytes(const LayerSpec& layer, DType dtype) {
  const int64_t num_matrices = layer.expert.gated ? 3 : 2;
  const int64_t num_biases = layer.expert.biased ? (num_matrices - 1) * layer.expert_dim + layer.hidden_dim : 0;
  return (num_matrices * layer.hidden_dim * layer.expert_dim + num_biases) * static_cast<int64_t>(SizeOf(dtype));
}

std::string DescribeGate(const GateSpec& gate, int num_experts) {
  std::string text = gate.scoring == Scoring::kSoftmax   ? "softmax"
                     : gate.scoring == Scoring::kSigmoid ? "sigmoid"
                                                         : "sparsemixer";
  absl::StrAppend(&text, ", top ", gate.top_k, " of ", num_experts);
  if (gate.num_groups > 1) {
    absl::StrAppend(&text, " in the best ", gate.groups_kept, " of ", gate.num_groups, " groups");
  }
  if (gate.normalization == Normalization::kSum) absl::StrAppend(&text, ", ÷ sum");
  if (gate.normalization == Normalization::kPNorm) absl::StrAppend(&text, ", ÷ ", gate.norm_order, "-norm");
  if (gate.scale != 1) absl::StrAppend(&text, ", × ", gate.scale);
  switch (gate.capacity.rule) {
    case CapacityRule::kNone:
      break;
    case CapacityRule::kFixed:
      absl::StrAppend(&text, ", at most ", gate.capacity.rows, " rows per expert");
      break;
    case CapacityRule::kFraction:
      absl::StrAppend(&text, ", at most ", gate.capacity.factor, " of the rows per expert");
      break;
    case CapacityRule::kTutel:
      if (gate.capacity.factor != 0) absl::StrAppend(&text, ", capacity factor ", gate.capacity.factor);
      break;
  }
  return text;
}

}  // namespace switchyard
