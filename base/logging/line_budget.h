// Limits how many lines of one kind are logged per second, so that a frequent error does not drown the log, and a
// stranger or a caller who causes lines does not fill a disk. Refused lines are counted, and the next line that is
// written says how many they were. LogWithin (base/logging/logging.h) logs within a budget.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
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

// A budget for each of several kinds of lines. Kinds come from a set that no stranger can make larger: a model's name,
// a rank, a place in the code.
class LineBudgets {
 public:
  explicit LineBudgets(int lines_per_second) : lines_per_second_(lines_per_second) {}

  // Stays valid as long as this object.
  LineBudget* Of(const std::string& kind) {
    MutexLock lock(&mu_);
    return &budgets_.try_emplace(kind, lines_per_second_).first->second;
  }

 private:
  const int lines_per_second_;
  Mutex mu_;
  std::map<std::string, LineBudget> budgets_ ABSL_GUARDED_BY(mu_);
};

// How a line tells of the `refused` lines before it.
inline std::string OthersLike(int64_t refused) { return refused == 0 ? "" : absl::StrCat(" (and ", refused, " more)"); }

}  // namespace switchyard
