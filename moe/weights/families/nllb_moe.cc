// NLLB-MoE: softmax over all experts, the best two, weights ÷ their sum; rows beyond an expert's capacity lose it.
// Plain experts with biases, whose output is scaled by 1 - moe_token_dropout.
#include <limits>

#include "absl/strings/match.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/families/encoder_decoder.h"

namespace switchyard {
namespace {

// "sampling" and "random" draw the second expert at random, also in inference.
absl::Status CheckSecondExpert(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const std::string policy, config.Text("second_expert_policy", "all"));
  if (policy == "all") return absl::OkStatus();
  return config.Error("second_expert_policy", absl::StrCat("found ", Quoted(policy), ", expected all"));
}

// A fraction of the rows; or, where that is not positive, expert_capacity; or else 2 · ceil(T / E), which is Tutel's
// rule with k = 2 and factor 1.
absl::StatusOr<CapacitySpec> ReadCapacity(const ConfigReader& config) {
  CapacitySpec capacity;
  SY_ASSIGN_OR_RETURN(const double fraction, config.Double("moe_eval_capacity_token_fraction", -1e6, 1e6, 1.0));
  if (fraction >= 1) return capacity;  // no expert is chosen more often than there are rows
  if (fraction > 0) {
    capacity.rule = CapacityRule::kFraction;
    capacity.factor = fraction;
  } else if (config.Has("expert_capacity")) {
    capacity.rule = CapacityRule::kFixed;
    SY_ASSIGN_OR_RETURN(capacity.rows, config.Int("expert_capacity", 1, kMaxExpertCapacity));
  } else {
    capacity.rule = CapacityRule::kTutel;
    capacity.factor = 1;
  }
  SY_ASSIGN_OR_RETURN(capacity.by_priority, config.Bool("batch_prioritized_routing", false));
  SY_ASSIGN_OR_RETURN(const bool normalizes_before, config.Bool("normalize_router_prob_before_dropping", false));
  capacity.renormalize = !normalizes_before;
  return capacity;
}

// transformers 5 takes the indices of experts from the one-hot mask of the first choice (NllbMoeExperts), so that the
// best choice's weight always goes to expert 1 and the other's to expert 0. A checkpoint written by transformers 5 is
// computed in that way too. Published checkpoints, written by transformers 4, use the chosen experts.
absl::StatusOr<std::vector<int32_t>> ReadExpertsOfChoices(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const std::string version, config.Text("transformers_version", ""));
  if (!absl::StartsWith(version, "5.")) return std::vector<int32_t>();
  return std::vector<int32_t>{1, 0};
}

absl::StatusOr<LayerSpec> ReadNllbSpec(const ConfigReader& config) {
  LayerSpec spec;
  SY_RETURN_IF_ERROR(CheckSecondExpert(config));
  SY_ASSIGN_OR_RETURN(spec.num_experts, ReadNumExperts(config, {"num_experts"}, 2));
  SY_ASSIGN_OR_RETURN(spec.hidden_dim, ReadWidth(config, "d_model"));
  SY_ASSIGN_OR_RETURN(spec.gate.capacity, ReadCapacity(config));
  SY_ASSIGN_OR_RETURN(const double dropout, config.Double("moe_token_dropout", 0, 0.999999, 0.2));
  SY_ASSIGN_OR_RETURN(spec.expert.activation, ReadActivation(config, "activation_function"));
  spec.gate.top_k = 2;
  spec.gate.normalization = Normalization::kSum;
  spec.gate.norm_min = std::numeric_limits<float>::epsilon();
  spec.gate.scale = 1 - dropout;
  SY_ASSIGN_OR_RETURN(spec.gate.experts_of_choices, ReadExpertsOfChoices(config));
  spec.expert.gated = false;
  spec.expert.biased = true;
  return spec;
}

absl::StatusOr<SparseStack> ReadStack(const ConfigReader& config, const std::string& name) {
  SparseStack stack = {.name = name, .path = absl::StrCat("model.", name, ".layers.#.ffn")};
  SY_ASSIGN_OR_RETURN(stack.num_layers, ReadNumLayers(config, name + "_layers"));
  SY_ASSIGN_OR_RETURN(stack.step, config.Int(name + "_sparse_step", 0, kMaxSparseStep, 4));
  return stack;
}

// The encoder's experts may be of another width than the decoder's.
absl::StatusOr<std::vector<MoeBlock>> NllbBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(block.spec, ReadNllbSpec(config));
  SY_ASSIGN_OR_RETURN(const bool router_bias, config.Bool("router_bias", false));
  block.names.gates[0].weight = {"router.classifier.weight"};
  if (router_bias) block.names.gates[0].bias = {"router.classifier.bias"};
  block.names.each = EachNames{"experts.expert_", {"", "fc1", "fc2"}};
  block.names.stacked.clear();
  std::vector<MoeBlock> blocks;
  for (const std::string name : {"encoder", "decoder"}) {
    SY_ASSIGN_OR_RETURN(const SparseStack stack, ReadStack(config, name));
    SY_ASSIGN_OR_RETURN(block.spec.expert_dim, ReadWidth(config, name + "_ffn_dim"));
    for (MoeBlock& of_stack : StackBlocks(block, {stack}, /*from_second=*/false)) blocks.push_back(std::move(of_stack));
  }
  return blocks;
}

const FamilyRegistration kNllbMoeFamily("nllb-moe", &NllbBlocks);

}  // namespace
}  // namespace switchyard
