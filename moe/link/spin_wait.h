// Polls a condition for a short while before a thread blocks, because waking a process on the same host takes several
// times as long as a small step (docs/wire.md has figures).
//
// It gives way: between looks it offers the core to other threads (sched_yield), and when another thread has had the
// core the spinning ends. It thus takes only time in which the core would have been idle. It gives up: after spins that
// found nothing, more and more waits skip spinning, up to kMaxSkipped, until a spin succeeds again. The spinning time
// should be longer than a small request's whole round trip; otherwise each request would find both ends of the link
// asleep.
//
// Thread-safety: one thread uses it.
#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace switchyard {

class SpinWait {
 public:
  // Spins for up to `longest`; 0 never spins.
  explicit SpinWait(std::chrono::microseconds longest, const Clock& clock = Clock::Real())
      : longest_(longest), clock_(clock) {}

  // True as soon as `ready` says so; false when it is time to block.
  template <typename Ready>
  bool Until(Ready ready) {
    if (ready()) return true;
    if (longest_.count() == 0) return false;
    if (num_to_skip_ > 0) {
      --num_to_skip_;
      return false;
    }
    const SteadyTime begin = clock_.Now();
    SteadyTime now = begin;
    do {
      sched_yield();
      const SteadyTime before = now;
      if (ready()) {
        skipped_after_failure_ = 0;
        return true;
      }
      now = clock_.Now();
      if (now - before > kOwnTurn) return false;
    } while (now - begin < longest_);
    skipped_after_failure_ = std::min(2 * skipped_after_failure_ + 1, kMaxSkipped);
    num_to_skip_ = skipped_after_failure_;
    return false;
  }

 private:
  static constexpr std::chrono::microseconds kOwnTurn{10};  // a look takes less unless another thread got the core
  static constexpr int kMaxSkipped = 63;

  const std::chrono::microseconds longest_;
  const Clock& clock_;
  int skipped_after_failure_ = 0;
  int num_to_skip_ = 0;
};

}  // namespace switchyard
