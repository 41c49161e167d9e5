// Runs tasks one after the other, in the order in which they were added, on a thread of its own that lives only while
// there are tasks. State that a task leaves behind in the thread, such as OpenMP's workers, goes with the thread.
//
// Thread-safe, except for the destructor. Tasks may add tasks.
#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "base/mutex.h"

namespace switchyard {

class TaskQueue {
 public:
  TaskQueue() = default;
  // Waits until every task has run.
  ~TaskQueue();
  TaskQueue(const TaskQueue&) = delete;
  TaskQueue& operator=(const TaskQueue&) = delete;

  void Add(std::function<void()> task);

 private:
  void Run();

  Mutex mu_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool running_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mu_);  // the last one that was started
};

}  // namespace switchyard
