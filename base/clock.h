// A steady clock that tests can move by hand. Wall-clock time is never used for timeouts, so a stepped clock harms
// nothing.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/mutex.h"

namespace switchyard {

using SteadyTime = std::chrono::steady_clock::time_point;

// Microseconds from `begin` to `end`.
inline int64_t MicrosBetween(SteadyTime begin, SteadyTime end) {
  return std::chrono::duration_cast<std::chrono::microseconds>(end - begin).count();
}

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual SteadyTime Now() const = 0;
  // The process-wide std::chrono::steady_clock.
  static const Clock& Real();
};

// Stands still until told otherwise. Thread-safe.
class FakeClock final : public Clock {
 public:
  SteadyTime Now() const override;
  void Advance(std::chrono::steady_clock::duration by);

 private:
  mutable Mutex mu_;
  SteadyTime now_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
