// Describes the computation of a MoE layer, independent of where its weights are stored.
//
//   logits  = router(x)                             [T, E]
//   routing = gate(logits)                          k experts and weights per row
//   output  = sum over the k of weight · expert_e(x)  +  sum over shared experts of weight · expert_s(x)
//
// and, in layers that weigh the input instead (ExpertSpec::weighs_input), expert_e(weight · x) without a factor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/tensor/dtype.h"

namespace switchyard {

enum class Activation : uint8_t {
  kSilu = 1,
  kGelu = 2,  // erf form
  kRelu = 3,
  kGeluTanh = 4,   // tanh form
  kQuickGelu = 5,  // x · sigmoid(1.702 x)
};

// "silu", "gelu", "relu", "gelu_tanh", "quick_gelu".
std::string_view ActivationName(Activation activation);
absl::StatusOr<Activation> ParseActivation(std::string_view name);

// How a row's logits become k experts and their weights, in this order:
//   1. score_e = softmax over all experts, or sigmoid, of the logits.
//   2. Experts compete by choice_e = score_e + correction_e (RouterWeights::score_correction, 0 without).
//   3. With groups, the experts are in num_groups equal consecutive groups, which compete by their best choice or by
//      the sum of their two best. The groups_kept best groups stay; the choices in the others become excluded_score.
//   4. The k largest choices are taken, best first; ties go to the lower index.
//   5. weight_e = score_e, without the correction; then normalised, then multiplied by `scale`.
// All in fp32, whatever the checkpoint's type.
enum class Scoring : uint8_t {
  kSoftmax = 1,
  kSigmoid = 2,
  // The k experts are drawn one after the other (phimoe's sparsemixer in inference, k = 2): the best one's weight is
  // its softmax among the experts whose logit s is near the best logit m: (m - s) / max(|s|, m) <= 2 · jitter. The next
  // one is drawn in the same way without it. The weights do not sum to 1.
  kSparseMixer = 3,
};

enum class GroupScore : uint8_t { kMax = 1, kTop2Sum = 2 };

enum class Normalization : uint8_t {
  kNone = 0,
  kSum = 1,    // ÷ max(sum of the k weights + norm_epsilon, norm_min)
  kPNorm = 2,  // ÷ (sum of |weight|^norm_order)^(1 / norm_order)
};

// At most so many rows of one request may choose an expert; rows beyond lose that expert. Capacity is counted per
// request, so that an answer never depends on other callers' rows. Places are given to all first choices in row order,
// then to all second choices, and so on.
enum class CapacityRule : uint8_t {
  kNone = 0,
  kFixed = 1,     // `rows` per expert (switch_transformers)
  kFraction = 2,  // ceil(factor · T) (nllb-moe)
  // Tutel's rule. With factor > 0: k · int(factor · ceil(T / E)). With 0: as many as the fullest expert needs. With
  // factor < 0: as many as the fullest expert needs, but at most as many as -factor gives. The result is rounded up to
  // a multiple of `alignment`.
  kTutel = 3,
};

struct CapacitySpec {
  CapacityRule rule = CapacityRule::kNone;
  int64_t rows = 0;
  double factor = 0;
  int64_t alignment = 1;
  // Places go to the rows with the largest best score first, instead of in row order.
  bool by_priority = false;
  // Weights of a row that lost an expert are normalised again.
  bool renormalize = false;
};

struct GateSpec {
  Scoring scoring = Scoring::kSoftmax;
  int top_k = 1;
  int num_groups = 1;  // divides the number of experts
  int groups_kept = 1;
  GroupScore group_score = GroupScore::kMax;
  float excluded_score = -std::numeric_limits<float>::infinity();
  Normalization normalization = Normalization::kNone;
  bool normalizes_single = true;  // whether a single weight (k = 1) is normalised too
  double norm_epsilon = 0;
  double norm_min = 0;
  double norm_order = 1;
  double scale = 1;
  double jitter = 0;  // for kSparseMixer
  // If not empty, the experts that compute a row's choices, best choice first, whichever experts were chosen:
  // transformers 5 does so for nllb-moe (docs/models.md). Takes effect after capacity.
  std::vector<int32_t> experts_of_choices;
  CapacitySpec capacity;
};

// expert(x) = down · (act(min(gate·x + b_gate, limit)) ⊙ (clamp(up·x + b_up, ±limit) + up_offset)) + b_down  when gated
// expert(x) = down · act(up · x + b_up) + b_down                                                             when plain
struct ExpertSpec {
  Activation activation = Activation::kSilu;
  bool gated = true;          // has a gate projection beside up
  bool biased = false;        // all its projections have biases
  double limit = 0;           // 0: none (gpt-oss: 7)
  double up_offset = 0;       // gpt-oss: 1
  bool weighs_input = false;  // the routing weight multiplies the expert's input (llama4, Tutel's is_postscore=False)
};

struct LayerSpec {
  std::string name;        // the transformer's own layer index: "3"
  int64_t hidden_dim = 0;  // D, width of a row
  int64_t expert_dim = 0;  // H, inner width of one expert
  int num_experts = 0;     // E, the experts that the gate chooses from
  GateSpec gate;
  std::vector<GateSpec> more_gates;  // gates 1, 2, … of a layer whose callers choose one
  ExpertSpec expert;
  // Shared experts compute every row. A shared expert of any width is served as num_shared experts of width H (the last
  // one padded with zeros), because an FFN is the sum of FFNs over parts of its hidden width. They have the indices
  // from E on. Each rank holds them all, so that no row travels for them.
  int num_shared = 0;
  int64_t shared_dim = 0;     // the sum of their widths before padding
  bool shared_gated = false;  // weight sigmoid(RouterWeights::shared_gate · x), else 1
  // Most choices of a row in a Routing: the k of the gate, then the shared experts.
  int num_choices() const {
    int most = gate.top_k;
    for (const GateSpec& other : more_gates) most = std::max(most, other.top_k);
    return most + num_shared;
  }
  // Experts with weights of their own: routed, then shared.
  int num_stored_experts() const { return num_experts + num_shared; }
  int num_gates() const { return 1 + static_cast<int>(more_gates.size()); }
  const GateSpec& gate_at(int gate_idx) const { return gate_idx == 0 ? gate : more_gates[gate_idx - 1]; }
};

// One servable model: its MoE layers in order. Dense layers are not listed.
struct ModelSpec {
  std::string family;         // model_type of config.json, or "synthetic"
  DType dtype = DType::kF32;  // the checkpoint's own element type; for quantised weights the type they are widened to
  std::vector<LayerSpec> layers;
  // Identifies the stored weights. A worker is refused unless its fingerprint equals the front's.
  uint64_t fingerprint = 0;
};

// Bytes of one expert's weights, biases included, in `dtype`.
int64_t ExpertBytes(const LayerSpec& layer, DType dtype);

// The gate's formula in words: "softmax, top 8 of 128, ÷ sum".
std::string DescribeGate(const GateSpec& gate, int num_experts);

}  // namespace switchyard
