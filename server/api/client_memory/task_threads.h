// Threads for work that would hold up gRPC's threads or the links' threads.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace switchyard {

// Tasks start in the order in which they were given to Run. Thread-safe.
class TaskThreads {
 public:
  explicit TaskThreads(int num_threads);
  // Runs the tasks that were given, and joins the threads. No task may call Run any more.
  ~TaskThreads();

  void Run(std::function<void()> task);

 private:
  void Loop();

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace switchyard
