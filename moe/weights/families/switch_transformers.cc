// Switch Transformers: softmax over all experts, the best one with its probability as weight; rows beyond
// expert_capacity lose it. Plain experts without biases.
#include "moe/weights/families/encoder_decoder.h"

namespace switchyard {
namespace {

// Reads encoder_sparse_step. Where it is not stored, the step is num_layers / num_sparse_encoder_layers, as in
// transformers. The decoder's keys are alike.
absl::StatusOr<SparseStack> ReadStack(const ConfigReader& config, const std::string& name, const std::string& path,
                                      std::string_view layers_key) {
  SparseStack stack = {.name = name, .path = path};
  SY_ASSIGN_OR_RETURN(stack.num_layers, ReadNumLayers(config, layers_key));
  const std::string step_key = name + "_sparse_step";
  if (config.Has(step_key)) {
    SY_ASSIGN_OR_RETURN(stack.step, config.Int(step_key, 0, kMaxSparseStep));
    return stack;
  }
  SY_ASSIGN_OR_RETURN(const int64_t num_sparse,
                      config.Int(absl::StrCat("num_sparse_", name, "_layers"), 0, stack.num_layers));
  if (num_sparse > 0) stack.step = stack.num_layers / num_sparse;
  return stack;
}

absl::StatusOr<LayerSpec> ReadSwitchSpec(const ConfigReader& config) {
  LayerSpec spec;
  SY_ASSIGN_OR_RETURN(spec.num_experts, ReadNumExperts(config, {"num_experts"}, 1));
  SY_ASSIGN_OR_RETURN(spec.hidden_dim, ReadWidth(config, "d_model"));
  SY_ASSIGN_OR_RETURN(spec.expert_dim, ReadWidth(config, "d_ff"));
  SY_ASSIGN_OR_RETURN(spec.gate.capacity.rows, config.Int("expert_capacity", 1, kMaxExpertCapacity));
  SY_ASSIGN_OR_RETURN(const std::string activation, config.Text("dense_act_fn", "relu"));
  if (activation == "relu") {
    spec.expert.activation = Activation::kRelu;
  } else {
    SY_ASSIGN_OR_RETURN(spec.expert.activation, ReadActivation(config, "dense_act_fn"));
  }
  spec.gate.capacity.rule = CapacityRule::kFixed;
  spec.expert.gated = false;
  return spec;
}

absl::StatusOr<std::vector<MoeBlock>> SwitchBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const SparseStack encoder,
                      ReadStack(config, "encoder", "encoder.block.#.layer.1.mlp", "num_layers"));
  SY_ASSIGN_OR_RETURN(const SparseStack decoder,
                      ReadStack(config, "decoder", "decoder.block.#.layer.2.mlp", "num_decoder_layers"));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSwitchSpec(config));
  SY_ASSIGN_OR_RETURN(const bool router_bias, config.Bool("router_bias", false));
  block.names.gates[0].weight = {"router.classifier.weight"};
  if (router_bias) block.names.gates[0].bias = {"router.classifier.bias"};
  block.names.each = EachNames{"experts.expert_", {"", "wi", "wo"}};
  block.names.stacked.clear();
  return StackBlocks(block, {encoder, decoder}, /*from_second=*/true);
}

const FamilyRegistration kSwitchTransformersFamily("switch_transformers", &SwitchBlocks);

}  // namespace
}  // namespace switchyard
