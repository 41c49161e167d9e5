// OLMoE: softmax over all experts, top-k, renormalised when norm_topk_prob says so; experts in every layer.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

absl::StatusOr<std::vector<MoeBlock>> OlmoeBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {.num_experts = {"num_experts", "num_local_experts"}}));
  SY_ASSIGN_OR_RETURN(block.spec.gate.normalization, ReadSumNormalization(config, "norm_topk_prob", false));
  block.paths = {"model.layers.#.mlp"};
  return RepeatBlock(block, num_layers);
}

const FamilyRegistration kOlmoeFamily("olmoe", &OlmoeBlocks);

}  // namespace
}  // namespace switchyard
