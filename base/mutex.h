// absl::Mutex that ThreadSanitizer understands.
//
// The system's abseil is built without ThreadSanitizer, so the sanitizer cannot see that its mutex orders anything. In
// a tsan build these wrappers tell the sanitizer; in every other build they are absl::Mutex and absl::CondVar with no
// cost. Conditions are explicit `while (!condition) cv.Wait(&mu)` loops.
//
// Thread-safe, as absl::Mutex and absl::CondVar are.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define SY_TSAN_ACQUIRE(address) __tsan_acquire(address)
#define SY_TSAN_RELEASE(address) __tsan_release(address)
#else
#define SY_TSAN_ACQUIRE(address)
#define SY_TSAN_RELEASE(address)
#endif

namespace switchyard {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    mu_.Lock();
    SY_TSAN_ACQUIRE(this);
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    SY_TSAN_RELEASE(this);
    mu_.Unlock();
  }

 private:
  friend class CondVar;
  absl::Mutex mu_;
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

class CondVar {
 public:
  void Wait(Mutex* mu) {
    SY_TSAN_RELEASE(mu);
    cv_.Wait(&mu->mu_);
    SY_TSAN_ACQUIRE(mu);
  }
  // Returns true when `timeout` passed without a signal.
  bool WaitWithTimeout(Mutex* mu, absl::Duration timeout) {
    SY_TSAN_RELEASE(mu);
    const bool timed_out = cv_.WaitWithTimeout(&mu->mu_, timeout);
    SY_TSAN_ACQUIRE(mu);
    return timed_out;
  }
  void Signal() { cv_.Signal(); }
  void SignalAll() { cv_.SignalAll(); }

 private:
  absl::CondVar cv_;
};

}  // namespace switchyard
