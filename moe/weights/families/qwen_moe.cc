#include "moe/weights/families/qwen_moe.h"

#include <algorithm>
#include <utility>

namespace switchyard {
namespace {

// Layer L has experts unless it is listed in mlp_only_layers or skipped by decoder_sparse_step.
struct QwenSparseLayers {
  std::vector<int64_t> dense;
  int64_t step = 1;

  bool Contains(int layer) const {
    return std::find(dense.begin(), dense.end(), layer) == dense.end() && (layer + 1) % step == 0;
  }
};

absl::StatusOr<QwenSparseLayers> ReadQwenSparseLayers(const ConfigReader& config, int num_layers) {
  QwenSparseLayers layers;
  SY_ASSIGN_OR_RETURN(layers.dense, config.IntList("mlp_only_layers", 0, std::max(num_layers - 1, 0)));
  SY_ASSIGN_OR_RETURN(layers.step, config.Int("decoder_sparse_step", 1, 10'000, 1));
  return layers;
}

absl::StatusOr<std::vector<MoeBlock>> ReadLayers(const ConfigReader& config, bool has_shared) {
  // Older writers say num_experts, newer ones of some models num_local_experts.
  SizeKeys keys = {.num_experts = {"num_experts", "num_local_experts"}, .expert_dim = "moe_intermediate_size"};
  if (!has_shared) std::swap(keys.num_experts[0], keys.num_experts[1]);
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(const int num_experts, ReadNumExperts(config, keys.num_experts, 0));
  if (num_experts == 0) return std::vector<MoeBlock>();
  SY_ASSIGN_OR_RETURN(const QwenSparseLayers sparse_layers, ReadQwenSparseLayers(config, num_layers));
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, keys));
  SY_ASSIGN_OR_RETURN(block.spec.gate.normalization, ReadSumNormalization(config, "norm_topk_prob", false));
  block.paths = {"model.layers.#.mlp"};
  if (has_shared) {
    SY_ASSIGN_OR_RETURN(const int64_t shared_dim, ReadWidth(config, "shared_expert_intermediate_size"));
    AddShared(shared_dim, &block.spec);
    block.spec.shared_gated = true;
    block.names.shared = SharedNames{"shared_expert", {}};
    block.names.shared_gate = "shared_expert_gate.weight";
  }
  return RepeatBlock(block, num_layers, [&](int layer) { return sparse_layers.Contains(layer); });
}

}  // namespace

absl::StatusOr<std::vector<MoeBlock>> ReadQwenBlocks(const ConfigReader& config) { return ReadLayers(config, false); }

absl::StatusOr<std::vector<MoeBlock>> ReadQwenBlocksWithShared(const ConfigReader& config) {
  return ReadLayers(config, true);
}

}  // namespace switchyard
