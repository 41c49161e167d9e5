// Llama 4: top-k logits, weight sigmoid(logit), which multiplies the expert's input; a shared expert as wide as the
// others. model_type llama4 is the multimodal model: its text part is under text_config, its tensors mostly under
// "language_model.".
#include <algorithm>

#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

// The layers listed in moe_layers, or else every interleave_moe_layer_step-th layer.
absl::StatusOr<std::vector<int64_t>> ListMoeLayers(const ConfigReader& config, int num_layers) {
  if (config.Has("moe_layers")) return config.IntList("moe_layers", 0, std::max(num_layers - 1, 0));
  SY_ASSIGN_OR_RETURN(const int64_t step, config.Int("interleave_moe_layer_step", 1, 10'000, 1));
  std::vector<int64_t> layers;
  for (int64_t layer = step - 1; layer < num_layers; layer += step) layers.push_back(layer);
  return layers;
}

StackedNames Llama4Experts() {
  StackedNames names = StorageNames::StandardStacked();
  names.inner_in_major = true;
  names.down_in_major = true;
  return names;
}

absl::StatusOr<std::vector<MoeBlock>> TextBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(const std::vector<int64_t> sparse, ListMoeLayers(config, num_layers));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {}));
  block.spec.gate.scoring = Scoring::kSigmoid;
  block.spec.expert.weighs_input = true;
  AddShared(block.spec.expert_dim, &block.spec);
  const std::string path = "model.layers.#.feed_forward";
  block.paths = {path, "language_model." + path, "model.language_model.layers.#.feed_forward"};
  block.names.gates[0].weight = {"router.weight"};
  block.names.stacked = {Llama4Experts()};
  block.names.shared = SharedNames{"shared_expert", {}};
  return RepeatBlock(block, num_layers,
                     [&](int layer) { return std::find(sparse.begin(), sparse.end(), layer) != sparse.end(); });
}

absl::StatusOr<std::vector<MoeBlock>> Llama4Blocks(const ConfigReader& config) {
  if (!config.Has("text_config")) return TextBlocks(config);
  SY_ASSIGN_OR_RETURN(const ConfigReader text_config, config.Object("text_config"));
  return TextBlocks(text_config);
}

const FamilyRegistration kLlama4("llama4", &Llama4Blocks);
const FamilyRegistration kLlama4Text("llama4_text", &TextBlocks);

}  // namespace
}  // namespace switchyard
