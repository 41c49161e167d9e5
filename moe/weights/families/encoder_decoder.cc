#include "moe/weights/families/encoder_decoder.h"

namespace switchyard {
namespace {

bool HasExperts(int layer, int64_t step, bool from_second) {
  if (step == 0) return false;
  return from_second ? step == 1 || layer % step == 1 : (layer + 1) % step == 0;
}

}  // namespace

std::vector<MoeBlock> StackBlocks(const MoeBlock& block, const std::vector<SparseStack>& stacks, bool from_second) {
  std::vector<MoeBlock> blocks;
  for (const SparseStack& stack : stacks) {
    MoeBlock of_stack = block;
    of_stack.paths = {stack.path};
    for (MoeBlock& repeated : RepeatBlock(of_stack, stack.num_layers,
                                          [&](int layer) { return HasExperts(layer, stack.step, from_second); })) {
      repeated.spec.name = absl::StrCat(stack.name, ".", repeated.spec.name);
      blocks.push_back(std::move(repeated));
    }
  }
  return blocks;
}

}  // namespace switchyard
