// A one-shot event with the interface of absl::Notification, on the project's own Mutex, so that ThreadSanitizer sees
// that everything before Notify() is visible after the wait.
//
// Thread-safe. Notify() is called once; a thread that waited for it may destroy the object at once.
#pragma once

#include "base/mutex.h"

namespace switchyard {

class Notification {
 public:
  Notification() = default;
  // Waits for a Notify() that still holds the lock.
  ~Notification() { MutexLock lock(&mu_); }

  void Notify() {
    MutexLock lock(&mu_);
    notified_ = true;
    changed_.SignalAll();
  }
  bool HasBeenNotified() const {
    MutexLock lock(&mu_);
    return notified_;
  }
  void WaitForNotification() const {
    MutexLock lock(&mu_);
    while (!notified_) changed_.Wait(&mu_);
  }

 private:
  mutable Mutex mu_;
  mutable CondVar changed_;
  bool notified_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace switchyard
