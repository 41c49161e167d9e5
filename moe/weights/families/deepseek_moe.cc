#include "moe/weights/families/deepseek_moe.h"

#include <limits>

#include "moe/weights/checkpoint/quoted.h"

namespace switchyard {
namespace {

constexpr int64_t kMaxShared = 1024;
constexpr double kMaxScale = 1e6;

// Without this check, a config of the other generation or another model's formula would go unnoticed.
absl::Status CheckScoring(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const std::string scoring, config.Text("scoring_func", "sigmoid"));
  if (scoring == "sigmoid") return absl::OkStatus();
  return config.Error("scoring_func", absl::StrCat("found ", Quoted(scoring), ", expected sigmoid"));
}

}  // namespace

absl::StatusOr<MoeBlock> ReadDeepseekBlock(const ConfigReader& config) {
  MoeBlock block;
  const SizeKeys keys = {.num_experts = {"n_routed_experts"}, .expert_dim = "moe_intermediate_size"};
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, keys));
  SY_ASSIGN_OR_RETURN(block.spec.gate.scale, config.Double("routed_scaling_factor", 1e-6, kMaxScale));
  SY_ASSIGN_OR_RETURN(const int64_t num_shared, config.Int("n_shared_experts", 0, kMaxShared, 0));
  AddShared(num_shared * block.spec.expert_dim, &block.spec);
  if (num_shared > 0) block.names.shared = SharedNames{"shared_experts", {}};
  block.paths = {"model.layers.#.mlp"};
  return block;
}

absl::Status ReadGroups(const ConfigReader& config, GroupScore score, LayerSpec* spec) {
  GateSpec& gate = spec->gate;
  SY_ASSIGN_OR_RETURN(const int64_t num_groups, config.Int("n_group", 1, spec->num_experts));
  SY_ASSIGN_OR_RETURN(const int64_t groups_kept, config.Int("topk_group", 1, num_groups));
  const int64_t group_size = spec->num_experts / num_groups;
  if (spec->num_experts % num_groups != 0) {
    return config.Error(
        "n_group", absl::StrCat("found ", num_groups, ", expected a divisor of the ", spec->num_experts, " experts"));
  }
  if (score == GroupScore::kTop2Sum && num_groups > 1 && group_size < 2) {
    return config.Error("n_group", absl::StrCat("found ", num_groups, ", expected groups of at least 2 experts"));
  }
  if (groups_kept * group_size < gate.top_k) {
    return config.Error("topk_group", absl::StrCat("found ", groups_kept, " groups of ", group_size,
                                                   " experts, expected at least the ", gate.top_k, " chosen ones"));
  }
  gate.num_groups = static_cast<int>(num_groups);
  gate.groups_kept = static_cast<int>(groups_kept);
  gate.group_score = score;
  // The recorded checkpoints do not tell 0 from -inf here. DeepSeek-V2's code takes 0, and no softmax is below 0.
  // DeepSeek-V3's own code and transformers since #45441 take -inf, because with a negative correction an expert of a
  // kept group may be below 0. Before that, transformers let experts of other groups win against it.
  gate.excluded_score = score == GroupScore::kMax ? 0 : -std::numeric_limits<float>::infinity();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MoeBlock>> RepeatDeepseekBlock(const ConfigReader& config, const MoeBlock& block) {
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(const int64_t num_dense, config.Int("first_k_dense_replace", 0, num_layers));
  SY_ASSIGN_OR_RETURN(const int64_t step, config.Int("moe_layer_freq", 1, 10'000, 1));
  return RepeatBlock(block, num_layers, [&](int layer) { return layer >= num_dense && layer % step == 0; });
}

absl::StatusOr<std::vector<MoeBlock>> ReadDeepseekV3Blocks(const ConfigReader& config) {
  SY_RETURN_IF_ERROR(CheckScoring(config));
  SY_ASSIGN_OR_RETURN(MoeBlock block, ReadDeepseekBlock(config));
  SY_RETURN_IF_ERROR(ReadGroups(config, GroupScore::kTop2Sum, &block.spec));
  block.spec.gate.scoring = Scoring::kSigmoid;
  SY_ASSIGN_OR_RETURN(block.spec.gate.normalization, ReadSumNormalization(config, "norm_topk_prob", std::nullopt));
  block.spec.gate.norm_epsilon = 1e-20;
  block.names.gates[0].score_correction = {"gate.e_score_correction_bias"};
  return RepeatDeepseekBlock(config, block);
}

}  // namespace switchyard
