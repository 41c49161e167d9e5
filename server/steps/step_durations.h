// How long steps take, and how long one may take before something must be wrong with it.
//
// Durations are kept by layer and by the power of two that the step's rows reach. A step may take a multiple of the
// slowest recent step of its size, or of the next larger size that was seen, and never less than kFloor. A step that is
// larger than all that were seen may take longer in proportion to its rows, but no longer than kUnknown, or than the
// smaller ones may if that is more: a slow step of a few rows says little about a large one. Nothing is known of a
// layer before its first step, which may pay one-time costs, too.
//
// Thread-compatible.
#pragma once

#include <chrono>
#include <map>
#include <utility>

#include "base/ids.h"

namespace switchyard {

class StepDurations {
 public:
  static constexpr int kMultiple = 10;
  static constexpr std::chrono::milliseconds kFloor{2500};
  static constexpr std::chrono::milliseconds kUnknown{60'000};

  void Record(LayerId layer, int64_t num_rows, std::chrono::nanoseconds duration);
  std::chrono::milliseconds Limit(LayerId layer, int64_t num_rows) const;
  void Forget(LayerId layer);

 private:
  // By layer and number of bits of the row count: the slowest recent step. A quicker one makes it a little quicker.
  std::map<std::pair<LayerId, int>, std::chrono::nanoseconds> slowest_;
};

}  // namespace switchyard
