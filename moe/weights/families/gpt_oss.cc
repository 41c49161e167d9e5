// gpt-oss: logits with a bias, top-k, softmax over the chosen (the same as softmax over all, divided by their sum);
// experts with biases, gate and up interleaved and clamped, (up + 1) · gate · sigmoid(1.702 · gate). Published weights
// are MXFP4.
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

constexpr double kSwigluAlpha = 1.702;  // as in Activation::kQuickGelu

StackedNames GptOssExperts() {
  StackedNames names;
  names.gate_up = "experts.gate_up_proj";
  names.gate_up_bias = "experts.gate_up_proj_bias";
  names.down = "experts.down_proj";
  names.down_bias = "experts.down_proj_bias";
  names.interleaved = true;
  names.inner_in_major = true;
  names.down_in_major = true;
  names.may_be_mxfp4 = true;
  return names;
}

// The expert formula is fixed: hidden_act says silu and is ignored.
absl::Status ReadSwiglu(const ConfigReader& config, ExpertSpec* expert) {
  SY_ASSIGN_OR_RETURN(const double alpha, config.Double("swiglu_alpha", 0, 1e6, kSwigluAlpha));
  if (alpha != kSwigluAlpha) {
    return config.Error("swiglu_alpha", absl::StrCat("found ", alpha, ", expected ", kSwigluAlpha));
  }
  SY_ASSIGN_OR_RETURN(expert->limit, config.Double("swiglu_limit", 1e-6, 1e6, 7.0));
  expert->activation = Activation::kQuickGelu;
  expert->up_offset = 1;
  expert->biased = true;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MoeBlock>> GptOssBlocks(const ConfigReader& config) {
  MoeBlock block;
  SY_ASSIGN_OR_RETURN(const int num_layers, ReadNumLayers(config));
  SY_ASSIGN_OR_RETURN(block.spec, ReadSizes(config, {.num_experts = {"num_local_experts", "num_experts"}}));
  SY_RETURN_IF_ERROR(ReadSwiglu(config, &block.spec.expert));
  block.spec.gate.normalization = Normalization::kSum;
  block.paths = {"model.layers.#.mlp"};
  block.names.gates[0].weight = {"router.weight"};
  block.names.gates[0].bias = {"router.bias"};
  block.names.each.reset();
  block.names.stacked = {GptOssExperts()};
  return RepeatBlock(block, num_layers);
}

const FamilyRegistration kGptOssFamily("gpt_oss", &GptOssBlocks);

}  // namespace
}  // namespace switchyard
