// DBRX: softmax over all experts, top-k, weights ÷ their p-norm (p is moe_normalize_expert_weights; null: not
// normalised); experts stacked as [E · F, D], the down projection w2 too: silu(x · w1ᵀ) ⊙ (x · v1ᵀ) · w2.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

constexpr double kMaxNormOrder = 100;

absl::StatusOr<Activation> ReadFfnActivation(const ConfigReader& ffn) {
  if (!ffn.Has("ffn_act_fn")) return Activation::kSilu;
  SY_ASSIGN_OR_RETURN(const ConfigReader function, ffn.Object("ffn_act_fn"));
  return ReadActivation(function, "name");
}

absl::Status ReadNorm(const ConfigReader& ffn, GateSpec* gate) {
  if (ffn.IsNull("moe_normalize_expert_weights")) return absl::OkStatus();
  gate->normalization = Normalization::kPNorm;
  SY_ASSIGN_OR_RETURN(gate->norm_order, ffn.Double("moe_normalize_expert_weights", 1e-3, kMaxNormOrder, 1.0));
  return absl::OkStatus();
}

StackedNames DbrxExperts() {
  StackedNames names;
  names.gate = "experts.mlp.w1";
  names.up = "experts.mlp.v1";
  names.down = "experts.mlp.w2";
  names.shape = StackedNames::Shape::kTall;
  names.down_in_major = true;
  return names;
}

absl::StatusOr<std::vector<MoeBlock>> DbrxBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config, "n_layers"));
  SY_ASSIGN_OR_RETURN(const ConfigReader ffn, config.Object("ffn_config"));
  SY_ASSIGN_OR_RETURN(block.spec.hidden_dim, ReadWidth(config, "d_model"));
  SY_ASSIGN_OR_RETURN(block.spec.expert_dim, ReadWidth(ffn, "ffn_hidden_size"));
  SY_ASSIGN_OR_RETURN(block.spec.num_experts, ReadNumExperts(ffn, {"moe_num_experts"}, 1));
  SY_ASSIGN_OR_RETURN(block.spec.gate.top_k, ReadTopK(ffn, "moe_top_k", block.spec.num_experts));
  SY_ASSIGN_OR_RETURN(block.spec.expert.activation, ReadFfnActivation(ffn));
  SY_RETURN_IF_ERROR(ReadNorm(ffn, &block.spec.gate));
  block.paths = {"transformer.blocks.#.ffn"};
  block.names.gates[0].weight = {"router.layer.weight"};
  block.names.each.reset();
  block.names.stacked = {DbrxExperts()};
  return RepeatBlock(block, num_layers);
}

const FamilyRegistration kDbrxFamily("dbrx", &DbrxBlocks);

}  // namespace
}  // namespace switchyard
