// DeepSeek-V2: softmax over all experts, top-k (within the groups with the best single experts, where topk_method says
// so), × routed_scaling_factor; shared experts. Weights are never renormalised, because transformers does not either,
// whatever norm_topk_prob says.
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/families/deepseek_moe.h"

namespace switchyard {
namespace {

absl::StatusOr<std::vector<MoeBlock>> DeepseekV2Blocks(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(MoeBlock block, ReadDeepseekBlock(config));
  SY_ASSIGN_OR_RETURN(const std::string method, config.Text("topk_method", "greedy"));
  if (method == "group_limited_greedy") {
    SY_RETURN_IF_ERROR(ReadGroups(config, GroupScore::kMax, &block.spec));
  } else if (method != "greedy") {
    return config.Error("topk_method",
                        absl::StrCat("found ", Quoted(method), ", expected greedy or group_limited_greedy"));
  }
  return RepeatDeepseekBlock(config, block);
}

const FamilyRegistration kDeepseekV2Family("deepseek_v2", &DeepseekV2Blocks);

}  // namespace
}  // namespace switchyard
