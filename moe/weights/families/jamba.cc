// Jamba: softmax over all experts, top-k, not renormalised; experts in layers L with
// L % expert_layer_period == expert_layer_offset.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

absl::StatusOr<std::vector<MoeBlock>> JambaBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(const int64_t period, config.Int("expert_layer_period", 1, 10'000, 2));
  SY_ASSIGN_OR_RETURN(const int64_t offset, config.Int("expert_layer_offset", 0, period - 1, 1));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {.num_experts = {"num_experts", "num_local_experts"}}));
  block.paths = {"model.layers.#.feed_forward"};
  block.names.gates[0].weight = {"router.weight"};
  // A single expert is stored as a dense layer.
  const bool is_dense = block.spec.num_experts == 1;
  return RepeatBlock(block, num_layers, [&](int layer) { return !is_dense && layer % period == offset; });
}

const FamilyRegistration kJambaFamily("jamba", &JambaBlocks);

}  // namespace
}  // namespace switchyard
