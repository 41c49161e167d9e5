#include "moe/link/link_layout.h"

namespace switchyard {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMaxPartBytes = uint64_t{1} << 40;
constexpr int32_t kMaxSlots = 64;
constexpr int32_t kMaxOutputs = 256;

uint64_t RoundToPage(uint64_t num_bytes) { return (num_bytes + kPage - 1) / kPage * kPage; }

}  // namespace

LinkLayout LinkLayout::For(int num_slots, size_t input_bytes, size_t plan_bytes, size_t output_bytes, int num_spares) {
  LinkLayout layout;
  layout.num_slots = num_slots;
  layout.num_outputs = num_slots + num_spares;
  layout.input_bytes = RoundToPage(input_bytes);
  layout.plan_bytes = RoundToPage(plan_bytes);
  layout.output_bytes = RoundToPage(output_bytes);
  return layout;
}

absl::Status LinkLayout::Validate() const {
  if (num_slots < 1 || num_slots > kMaxSlots) {
    return absl::InvalidArgumentError(absl::StrCat("link layout: ", num_slots, " slots, expected 1 to ", kMaxSlots));
  }
  if (num_outputs < num_slots || num_outputs > kMaxOutputs) {
    return absl::InvalidArgumentError(
        absl::StrCat("link layout: ", num_outputs, " outputs, expected ", num_slots, " to ", kMaxOutputs));
  }
  for (uint64_t part : {input_bytes, plan_bytes, output_bytes}) {
    if (part % kPage != 0 || part > kMaxPartBytes) {
      return absl::InvalidArgumentError(absl::StrCat("link layout: a part of ", part, " bytes is not whole pages"));
    }
  }
  return absl::OkStatus();
}

}  // namespace switchyard
