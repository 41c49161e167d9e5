// Phi-3.5-MoE: two experts drawn by sparsemixer, whose weights do not sum to 1; experts in every layer.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

absl::StatusOr<std::vector<MoeBlock>> PhimoeBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {}));
  if (block.spec.gate.top_k != 2) {
    return config.Error("num_experts_per_tok",
                        absl::StrCat("found ", block.spec.gate.top_k, ", expected 2, as sparsemixer draws"));
  }
  block.spec.gate.scoring = Scoring::kSparseMixer;
  SY_ASSIGN_OR_RETURN(block.spec.gate.jitter, config.Double("router_jitter_noise", 0, 1e3, 0.01));
  block.paths = {"model.layers.#.block_sparse_moe", "model.layers.#.mlp"};
  block.names.gates[0].weight = {"gate.weight", "router.weight"};
  block.names.each->projections = {"w1", "w3", "w2"};
  return RepeatBlock(block, num_layers);
}

const FamilyRegistration kPhimoeFamily("phimoe", &PhimoeBlocks);

}  // namespace
}  // namespace switchyard
