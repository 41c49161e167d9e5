// What a MoE layer computes, independent of where its weights are stored.
//
//   logits  = x · router^T                        [T, E]
//   routing = gate(logits)                        k experts and weights per row
//   output  = sum over the k of weight · expert_e(x)
//   expert(x) = down · (act(gate · x) ⊙ (up · x))   when gated
//   expert(x) = down · act(up · x + b_up) + b_down   when plain
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/tensor/dtype.h"

namespace switchyard {

enum class Activation : uint8_t { kSilu = 1, kGelu = 2 /* erf form */, kRelu = 3 };

// "silu", "gelu", "relu".
std::string_view ActivationName(Activation activation);
absl::StatusOr<Activation> ParseActivation(std::string_view name);

// How router logits become expert weights.
enum class ScoreOrder : uint8_t {
  kSoftmaxThenTopK = 1,  // softmax over all experts, then the k largest
};

struct GateSpec {
  ScoreOrder order = ScoreOrder::kSoftmaxThenTopK;
  int top_k = 1;
  bool renormalize = false;  // divide the k weights by their sum
};

struct ExpertSpec {
  Activation activation = Activation::kSilu;
  bool gated = true;  // has a gate projection beside up
  bool biased = false;
};

struct LayerSpec {
  std::string name;        // the transformer's own layer index: "3"
  int64_t hidden_dim = 0;  // D, width of a row
  int64_t expert_dim = 0;  // H, inner width of one expert
  int num_experts = 0;     // E
  GateSpec gate;
  ExpertSpec expert;
};

// One servable model: its MoE layers in order. Dense layers are not listed.
struct ModelSpec {
  std::string family;         // model_type of config.json, or "synthetic"
  DType dtype = DType::kF32;  // the checkpoint's own element type
  std::vector<LayerSpec> layers;
  // Identifies the stored weights: equal on the front and on every worker, or the worker is refused.
  uint64_t fingerprint = 0;
};

// Bytes of one expert's weights, biases included, in `dtype`.
int64_t ExpertBytes(const LayerSpec& layer, DType dtype);

}  // namespace switchyard
