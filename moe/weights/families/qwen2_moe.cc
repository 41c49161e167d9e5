// Qwen1.5-MoE and Qwen2-MoE: see qwen_moe.h; with a gated shared expert.
#include "moe/weights/families/qwen_moe.h"

namespace switchyard {
namespace {

const FamilyRegistration kQwen2MoeFamily("qwen2_moe", &ReadQwenBlocksWithShared);

}  // namespace
}  // namespace switchyard
