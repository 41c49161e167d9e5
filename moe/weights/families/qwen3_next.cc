// Qwen3-Next: see qwen_moe.h; with a gated shared expert. Its extra prediction layers lie under "mtp.", which is not
// read.
#include "moe/weights/families/qwen_moe.h"

namespace switchyard {
namespace {

const FamilyRegistration kQwen3NextFamily("qwen3_next", &ReadQwenBlocksWithShared);

}  // namespace
}  // namespace switchyard
