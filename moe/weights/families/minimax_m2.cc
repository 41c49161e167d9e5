// MiniMax-M2: sigmoid scores, top-k by score + correction, weights ÷ sum; experts in every layer.
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

absl::StatusOr<std::vector<MoeBlock>> MinimaxM2Blocks(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const std::string scoring, config.Text("scoring_func", "sigmoid"));
  if (scoring != "sigmoid") {
    return config.Error("scoring_func", absl::StrCat("found ", Quoted(scoring), ", expected sigmoid"));
  }
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {}));
  block.spec.gate.scoring = Scoring::kSigmoid;
  block.spec.gate.normalization = Normalization::kSum;
  block.paths = {"model.layers.#.block_sparse_moe", "model.layers.#.mlp"};
  block.names.gates[0].score_correction = {"e_score_correction_bias", "gate.e_score_correction_bias"};
  block.names.each->projections = {"w1", "w3", "w2"};
  return RepeatBlock(block, num_layers);
}

const FamilyRegistration kMinimaxM2Family("minimax_m2", &MinimaxM2Blocks);

}  // namespace
}  // namespace switchyard
