#include "server/steps/step_durations.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace switchyard {
namespace {

constexpr int kMemory = 16;  // steps
// A step that takes hours counts like this, so that a multiple of it stays in range.
constexpr std::chrono::nanoseconds kLongest = std::chrono::hours(24);

// A duration is scaled by no more than this from a smaller size to a larger one.
constexpr int kMaxDoublings = 20;

std::chrono::milliseconds MultipleOf(std::chrono::nanoseconds duration) {
  return std::max(StepDurations::kFloor,
                  std::chrono::duration_cast<std::chrono::milliseconds>(duration * StepDurations::kMultiple));
}

int SizeClass(int64_t num_rows) { return std::bit_width(static_cast<uint64_t>(std::max<int64_t>(num_rows, 0))); }

}  // namespace

void StepDurations::Record(LayerId layer, int64_t num_rows, std::chrono::nanoseconds duration) {
  duration = std::clamp(duration, std::chrono::nanoseconds(0), kLongest);
  const auto [slowest, is_first] = slowest_.try_emplace({layer, SizeClass(num_rows)}, duration);
  if (is_first) return;
  if (duration >= slowest->second) {
    slowest->second = duration;
  } else {
    slowest->second -= (slowest->second - duration) / kMemory;
  }
}

std::chrono::milliseconds StepDurations::Limit(LayerId layer, int64_t num_rows) const {
  const int size = SizeClass(num_rows);
  const auto at_least = slowest_.lower_bound({layer, size});
  if (at_least != slowest_.end() && at_least->first.first == layer) return MultipleOf(at_least->second);
  if (at_least == slowest_.begin() || std::prev(at_least)->first.first != layer) return kUnknown;
  const auto& [key, smaller] = *std::prev(at_least);
  const int64_t factor = int64_t{1} << std::min(size - key.second, kMaxDoublings);
  const auto scaled = smaller > kLongest / factor ? kLongest : smaller * factor;
  return std::min(MultipleOf(scaled), std::max(kUnknown, MultipleOf(smaller)));
}

void StepDurations::Forget(LayerId layer) {
  slowest_.erase(slowest_.lower_bound({layer, 0}), slowest_.lower_bound({LayerId{layer.value + 1}, 0}));
}

}  // namespace switchyard
