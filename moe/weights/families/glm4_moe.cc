// GLM-4.5: the layers of DeepSeek-V3 (see deepseek_moe.h).
#include "moe/weights/families/deepseek_moe.h"

namespace switchyard {
namespace {

const FamilyRegistration kGlm4MoeFamily("glm4_moe", &ReadDeepseekV3Blocks);

}  // namespace
}  // namespace switchyard
