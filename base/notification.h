// A one-shot event: Notification's interface on the project's own Mutex, so that ThreadSanitizer sees that what
// happened before Notify() is visible after the wait.
//
// Thread-safe. Notify() is called once; whoever waited for it may destroy the object at once.
#pragma once

#include "base/mutex.h"

namespace switchyard {

class Notification {
 public:
  Notification() = default;
  // Waits for a Notify() that has not quite returned.
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
