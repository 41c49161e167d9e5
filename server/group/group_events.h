// The queue of the group's events. Threads post the events that they notice, and the group's thread handles them in
// that order.
//
// Outlives the group and everything that posts, so that an event that comes during the end finds a queue, and is
// dropped.
//
// Thread-safe.
#pragma once

#include <deque>
#include <functional>
#include <utility>

#include "base/clock.h"
#include "base/mutex.h"

namespace switchyard {

class Group;

class GroupEvents {
 public:
  using Event = std::function<void(Group& group)>;

  void Post(Event event) {
    MutexLock lock(&mu_);
    if (is_closed_) return;
    events_.push_back(std::move(event));
    changed_.Signal();
  }

  // The events that have been posted, which leave the queue. Waits for one until `deadline`, or until Close.
  std::deque<Event> Take(SteadyTime deadline) {
    MutexLock lock(&mu_);
    while (events_.empty() && !is_closed_) {
      if (changed_.WaitUntil(&mu_, deadline)) break;
    }
    return std::exchange(events_, {});
  }

  // Without waiting.
  std::deque<Event> TakeQueued() {
    MutexLock lock(&mu_);
    return std::exchange(events_, {});
  }
  bool empty() const {
    MutexLock lock(&mu_);
    return events_.empty();
  }

  // Drops the queued events, and all that come later.
  void Close() {
    std::deque<Event> dropped;  // ends outside the lock
    MutexLock lock(&mu_);
    is_closed_ = true;
    dropped.swap(events_);
    changed_.Signal();
  }
  bool is_closed() const {
    MutexLock lock(&mu_);
    return is_closed_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Event> events_ ABSL_GUARDED_BY(mu_);
  bool is_closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace switchyard
