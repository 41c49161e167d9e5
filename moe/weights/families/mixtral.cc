// Mixtral: softmax over all experts, top-k, always renormalised; gated experts without biases in every layer.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

// Published files say block_sparse_moe; transformers' own module, and so a raw dump of it, says mlp.
absl::StatusOr<std::vector<MoeBlock>> MixtralBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {}));
  block.spec.gate.normalization = Normalization::kSum;
  block.paths = {"model.layers.#.block_sparse_moe", "model.layers.#.mlp"};
  block.names.each->projections = {"w1", "w3", "w2"};
  return RepeatBlock(block, num_layers);
}

const FamilyRegistration kMixtralFamily("mixtral", &MixtralBlocks);

}  // namespace
}  // namespace switchyard
