// Mixtral: softmax over all experts, top-k, always renormalised; gated experts without biases in every layer.
#include "moe/weights/family.h"

namespace switchyard {
namespace {

absl::StatusOr<LayerSpec> ReadSpec(const ConfigReader& config) {
  LayerSpec spec;
  SY_ASSIGN_OR_RETURN(spec.num_experts, ReadNumExperts(config, {"num_local_experts"}, 1));
  SY_ASSIGN_OR_RETURN(spec.hidden_dim, ReadWidth(config, "hidden_size"));
  SY_ASSIGN_OR_RETURN(spec.expert_dim, ReadWidth(config, "intermediate_size"));
  SY_ASSIGN_OR_RETURN(spec.gate.top_k, ReadTopK(config, spec.num_experts));
  SY_ASSIGN_OR_RETURN(spec.expert.activation, ReadActivation(config));
  spec.gate.renormalize = true;
  return spec;
}

// Published files say block_sparse_moe; transformers' own module, and so a raw dump of it, says mlp.
absl::StatusOr<std::vector<MoeBlock>> MixtralBlocks(const ConfigReader& config) {
  std::vector<MoeBlock> blocks;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(LayerSpec spec, ReadSpec(config));
  for (int layer = 0; layer < num_layers; ++layer) {
    spec.name = absl::StrCat(layer);
    const std::string path = absl::StrCat("model.layers.", layer);
    blocks.push_back({spec, {path + ".block_sparse_moe", path + ".mlp"}, {"w1", "w3", "w2"}});
  }
  return blocks;
}

const FamilyRegistration kRegistration("mixtral", &MixtralBlocks);

}  // namespace
}  // namespace switchyard
