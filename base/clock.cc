#include "base/clock.h"

namespace switchyard {
namespace {

class RealClock final : public Clock {
 public:
  SteadyTime Now() const override { return std::chrono::steady_clock::now(); }
};

}  // namespace

const Clock& Clock::Real() {
  // Never destroyed, because the log still needs it while the process ends.
  static const Clock& clock = *new RealClock;
  return clock;
}

SteadyTime FakeClock::Now() const {
  MutexLock lock(&mu_);
  return now_;
}

void FakeClock::Advance(std::chrono::steady_clock::duration by) {
  MutexLock lock(&mu_);
  now_ += by;
}

}  // namespace switchyard
