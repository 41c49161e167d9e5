// Qwen3-MoE: softmax over all experts, top-k, renormalised when norm_topk_prob says so; gated experts without biases
// and no shared expert. Some layers may be dense.
#include <algorithm>

#include "moe/weights/family.h"

namespace switchyard {
namespace {

// Layer L has experts unless it is listed in mlp_only_layers or skipped by decoder_sparse_step.
struct SparseLayers {
  std::vector<int64_t> dense;
  int64_t step = 1;

  bool Contains(int layer) const {
    return std::find(dense.begin(), dense.end(), layer) == dense.end() && (layer + 1) % step == 0;
  }
};

absl::StatusOr<SparseLayers> ReadSparseLayers(const ConfigReader& config, int num_layers) {
  SparseLayers layers;
  SY_ASSIGN_OR_RETURN(layers.dense, config.IntList("mlp_only_layers", 0, std::max(num_layers - 1, 0)));
  SY_ASSIGN_OR_RETURN(layers.step, config.Int("decoder_sparse_step", 1, 10'000, 1));
  return layers;
}

absl::StatusOr<LayerSpec> ReadSpec(const ConfigReader& config, int num_experts) {
  LayerSpec spec;
  spec.num_experts = num_experts;
  SY_ASSIGN_OR_RETURN(spec.hidden_dim, ReadWidth(config, "hidden_size"));
  SY_ASSIGN_OR_RETURN(spec.expert_dim, ReadWidth(config, "moe_intermediate_size"));
  SY_ASSIGN_OR_RETURN(spec.gate.top_k, ReadTopK(config, num_experts));
  SY_ASSIGN_OR_RETURN(spec.gate.renormalize, config.Bool("norm_topk_prob", false));
  SY_ASSIGN_OR_RETURN(spec.expert.activation, ReadActivation(config));
  return spec;
}

absl::StatusOr<std::vector<MoeBlock>> Qwen3MoeBlocks(const ConfigReader& config) {
  std::vector<MoeBlock> blocks;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(const int num_experts, ReadNumExperts(config, {"num_local_experts", "num_experts"}, 0));
  if (num_experts == 0) return blocks;
  SY_ASSIGN_OR_RETURN(const SparseLayers sparse_layers, ReadSparseLayers(config, num_layers));
  SY_ASSIGN_OR_RETURN(LayerSpec spec, ReadSpec(config, num_experts));
  for (int layer = 0; layer < num_layers; ++layer) {
    if (!sparse_layers.Contains(layer)) continue;
    spec.name = absl::StrCat(layer);
    blocks.push_back({spec, {absl::StrCat("model.layers.", layer, ".mlp")}, {}});
  }
  return blocks;
}

const FamilyRegistration kRegistration("qwen3_moe", &Qwen3MoeBlocks);

}  // namespace
}  // namespace switchyard
