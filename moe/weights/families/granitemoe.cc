// Granite MoE: top-k logits, softmax over the chosen (the same as softmax over all, divided by their sum); experts of a
// layer fused in every checkpoint.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

absl::StatusOr<std::vector<MoeBlock>> GraniteMoeBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {}));
  block.spec.gate.normalization = Normalization::kSum;
  block.paths = {"model.layers.#.block_sparse_moe"};
  block.names.gates[0].weight = {"router.layer.weight"};
  StackedNames experts;
  experts.gate_up = "input_linear.weight";
  experts.down = "output_linear.weight";
  block.names.each.reset();
  block.names.stacked = {experts};
  return RepeatBlock(block, num_layers);
}

const FamilyRegistration kGranitemoeFamily("granitemoe", &GraniteMoeBlocks);

}  // namespace
}  // namespace switchyard
