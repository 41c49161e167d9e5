// DeepSeek-V3 and R1, and Kimi-K2, which has the same layers under its own name: see deepseek_moe.h.
#include "moe/weights/families/deepseek_moe.h"

namespace switchyard {
namespace {

const FamilyRegistration kDeepseekV3("deepseek_v3", &ReadDeepseekV3Blocks);
const FamilyRegistration kKimiK2("kimi_k2", &ReadDeepseekV3Blocks);

}  // namespace
}  // namespace switchyard
