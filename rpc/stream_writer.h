// Queues messages for a gRPC callback stream, which takes one write at a time.
//
// A reactor owns one, gives it a function that starts a write, and forwards OnWriteDone. Messages go out in the order
// of Send; after Stop, or after a write failed, they are dropped (the stream is ending and no peer would read them).
//
// Thread-safe. The start function is called with the lock held, so that no write starts after Stop has returned.
// Therefore the function must only enqueue, as StartWrite does, and never call back. The message it gets stays alive
// until OnWriteDone.
#pragma once

#include <deque>
#include <functional>
#include <utility>

#include "base/mutex.h"

namespace switchyard {

template <typename Message>
class StreamWriter {
 public:
  explicit StreamWriter(std::function<void(const Message*)> start_write) : start_write_(std::move(start_write)) {}

  void Send(Message message) {
    MutexLock lock(&mu_);
    if (stopped_) return;
    queue_.push_back(std::move(message));
    StartNext();
  }

  void OnWriteDone(bool ok) {
    MutexLock lock(&mu_);
    writing_ = false;
    queue_.pop_front();
    if (!ok) stopped_ = true;
    StartNext();
  }

  // No write starts once this has returned; a write in progress still gets its OnWriteDone.
  void Stop() {
    MutexLock lock(&mu_);
    stopped_ = true;
  }

 private:
  void StartNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (stopped_ || writing_ || queue_.empty()) return;
    writing_ = true;
    start_write_(&queue_.front());
  }

  const std::function<void(const Message*)> start_write_;
  Mutex mu_;
  std::deque<Message> queue_ ABSL_GUARDED_BY(mu_);  // the first one is being written when writing_
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace switchyard
