// Limits how many lines of one kind are logged per second, so that a frequent error does not drown the log. Refused
// lines are counted.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "base/mutex.h"

namespace switchyard {

class LineBudget {
 public:
  explicit LineBudget(int lines_per_second) : lines_per_second_(lines_per_second) {}

  // Returns nullopt when the line must not be written, else the number of lines refused since the last one that was
  // written.
  std::optional<int64_t> Take(SteadyTime now) {
    MutexLock lock(&mu_);
    if (!second_began_.has_value() || now - *second_began_ >= std::chrono::seconds(1)) {
      second_began_ = now;
      lines_ = 0;
    }
    if (lines_ == lines_per_second_) {
      ++refused_;
      return std::nullopt;
    }
    ++lines_;
    const int64_t refused = refused_;
    refused_ = 0;
    return refused;
  }

 private:
  const int lines_per_second_;
  Mutex mu_;
  std::optional<SteadyTime> second_began_ ABSL_GUARDED_BY(mu_);
  int lines_ ABSL_GUARDED_BY(mu_) = 0;  // written since second_began_
  int64_t refused_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
