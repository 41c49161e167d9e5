// A mutex that the compiler checks, and a condition variable that waits by the steady clock.
//
// clang's -Wthread-safety knows Mutex and MutexLock: a member that is ABSL_GUARDED_BY a Mutex is only touched by code
// that holds it. Conditions are explicit `while (!condition) cv.Wait(&mu)` loops, which the analysis can follow.
//
// Time limits are by std::chrono::steady_clock, also while a thread sleeps. absl::CondVar would sleep by the wall
// clock, and a wall clock that is set back by an hour would make it sleep an hour longer.
//
// Thread-safety: that of std::mutex and std::condition_variable.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"

namespace switchyard {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

// Every wait is called with `mu` held, releases it while it sleeps, and holds it again when it returns. It may return
// without a signal.
class CondVar {
 public:
  void Wait(Mutex* mu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    Held held(mu);
    cv_.wait(held.lock);
  }

  // Returns whether `deadline` has passed.
  bool WaitUntil(Mutex* mu, std::chrono::steady_clock::time_point deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    Held held(mu);
    return cv_.wait_until(held.lock, deadline) == std::cv_status::timeout;
  }

  // Returns whether `timeout` has passed. A timeout of years is cut to one year.
  bool WaitFor(Mutex* mu, std::chrono::nanoseconds timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    constexpr std::chrono::nanoseconds kLongest = std::chrono::hours(24 * 365);
    return WaitUntil(mu, std::chrono::steady_clock::now() + (timeout < kLongest ? timeout : kLongest));
  }

  void Signal() { cv_.notify_one(); }
  void SignalAll() { cv_.notify_all(); }

 private:
  // The caller's lock, as the standard library wants it. It stays locked when this ends.
  struct Held {
    explicit Held(Mutex* mu) : lock(mu->mu_, std::adopt_lock) {}
    ~Held() { lock.release(); }
    std::unique_lock<std::mutex> lock;
  };

  std::condition_variable cv_;
};

}  // namespace switchyard
