// The right to build and submit steps, which one thread at a time has, so that every rank gets the steps in one order.
//
// The baton goes from thread to thread: a thread that takes a step takes the baton with it, and either dispatches the
// step itself or hands both to the dispatcher. Taking and putting down happen under the scheduler's lock; the work in
// between does not, and DispatchTurn marks it:
//
//   {
//     MutexLock lock(&mu_);
//     if (baton_.is_taken()) return;
//     baton_.Take();
//   }
//   {
//     DispatchTurn turn(&baton_);
//     builder_.Build(step);        // builder_ is ABSL_GUARDED_BY(baton_)
//   }
//   MutexLock lock(&mu_);
//   baton_.Put();
#pragma once

#include <atomic>
#include <cassert>

#include "absl/base/thread_annotations.h"

namespace switchyard {

// A capability of clang's -Wthread-safety: only code with a DispatchTurn touches state that the baton guards.
class ABSL_LOCKABLE DispatchBaton {
 public:
  // Under the scheduler's lock, these three.
  bool is_taken() const { return is_taken_.load(std::memory_order_relaxed); }
  void Take() {
    assert(!is_taken());
    is_taken_.store(true, std::memory_order_relaxed);
  }
  void Put() {
    assert(is_taken());
    is_taken_.store(false, std::memory_order_relaxed);
  }

 private:
  std::atomic<bool> is_taken_{false};
};

// The work of the thread that has the baton.
class ABSL_SCOPED_LOCKABLE DispatchTurn {
 public:
  explicit DispatchTurn([[maybe_unused]] const DispatchBaton* baton) ABSL_EXCLUSIVE_LOCK_FUNCTION(baton) {
    assert(baton->is_taken());
  }
  ~DispatchTurn() ABSL_UNLOCK_FUNCTION() {}
  DispatchTurn(const DispatchTurn&) = delete;
  DispatchTurn& operator=(const DispatchTurn&) = delete;
};

}  // namespace switchyard
