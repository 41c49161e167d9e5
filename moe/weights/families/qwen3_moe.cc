// Qwen3-MoE: see qwen_moe.h; no shared expert.
#include "moe/weights/families/qwen_moe.h"

namespace switchyard {
namespace {

const FamilyRegistration kQwen3MoeFamily("qwen3_moe", &ReadQwenBlocks);

}  // namespace
}  // namespace switchyard
