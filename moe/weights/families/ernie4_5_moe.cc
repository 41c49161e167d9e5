// ERNIE 4.5: softmax over all experts, top-k by probability + correction, weights ÷ max(sum, moe_norm_min); shared
// experts as one FFN; biases where use_bias says so. Experts in every moe_layer_interval-th layer from
// moe_layer_start_index to moe_layer_end_index.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

struct SparseLayers {
  int64_t start, end, interval;
};

absl::StatusOr<SparseLayers> ReadSparseLayers(const ConfigReader& config, int num_layers) {
  SparseLayers layers;
  const int64_t last = num_layers - 1;
  SY_ASSIGN_OR_RETURN(layers.start, config.Int("moe_layer_start_index", 0, 10'000, 1));
  SY_ASSIGN_OR_RETURN(layers.end, config.Int("moe_layer_end_index", -1, 10'000, -1));
  SY_ASSIGN_OR_RETURN(layers.interval, config.Int("moe_layer_interval", 1, 10'000, 1));
  if (layers.end == -1) layers.end = last;
  return layers;
}

absl::Status ReadShared(const ConfigReader& config, MoeBlock* block) {
  SY_ASSIGN_OR_RETURN(const int64_t num_shared, config.Int("moe_num_shared_experts", 0, 1024, 0));
  AddShared(num_shared * block->spec.expert_dim, &block->spec);
  if (num_shared > 0) block->names.shared = SharedNames{"shared_experts", {}};
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MoeBlock>> Ernie45MoeBlocks(const ConfigReader& config) {
  MoeBlock block;
  const SizeKeys keys = {.num_experts = {"moe_num_experts"}, .expert_dim = "moe_intermediate_size", .top_k = "moe_k"};
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(const SparseLayers layers, ReadSparseLayers(config, num_layers));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, keys));
  SY_ASSIGN_OR_RETURN(block.spec.gate.norm_min, config.Double("moe_norm_min", 0, 1, 1e-12));
  SY_ASSIGN_OR_RETURN(block.spec.expert.biased, config.Bool("use_bias", false));
  block.spec.gate.normalization = Normalization::kSum;
  SY_RETURN_IF_ERROR(ReadShared(config, &block));
  block.paths = {"model.layers.#.mlp"};
  block.names.gates[0].score_correction = {"moe_statics.e_score_correction_bias",
                                           "gate.moe_statics.e_score_correction_bias"};
  block.names.gates[0].correction_is_row = true;
  if (block.spec.expert.biased) block.names.stacked.clear();  // no program that writes biases fuses them
  return RepeatBlock(block, num_layers, [&](int layer) {
    return (layer + 1) % layers.interval == 0 && layer >= layers.start && layer <= layers.end;
  });
}

const FamilyRegistration kErnie45MoeFamily("ernie4_5_moe", &Ernie45MoeBlocks);

}  // namespace
}  // namespace switchyard
