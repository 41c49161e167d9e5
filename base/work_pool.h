// Helper threads for short loops. Unlike an OpenMP team, a loop does not wait for a thread that has not joined it.
//
// The caller and every helper that is awake in time take a loop's tasks one by one. The caller returns when all tasks
// are done, so a helper whose core is busy with something else costs the loop nothing; an OpenMP team's barrier would
// wait a scheduler's time slice for it. Helpers look out for the next loop for a few tens of µs, then sleep.
//
//   WorkPool pool(8);
//   pool.Run(rows, [&](int64_t row_idx, int worker) { Compute(row_idx, &scratch[worker]); });
//
// Thread-safety: only one thread at a time may call Run.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/mutex.h"

namespace switchyard {

class WorkPool {
 public:
  // Called with a task and the number of the thread that runs it, in [0, num_threads). Does not throw.
  using Body = absl::FunctionRef<void(int64_t task, int worker)>;

  // The caller of Run is one of the `num_threads` >= 1; the others start with the first loop that can use them.
  explicit WorkPool(int num_threads);
  ~WorkPool();
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body for every task in [0, num_tasks), in no particular order, and returns when all calls have returned.
  // Everything that they wrote is then visible. A single task runs on the caller and disturbs no helper.
  void Run(int64_t num_tasks, Body body);

 private:
  void StartHelpers();
  void Help(int worker);
  void AwaitLoop(uint64_t last_loop);
  void TakeTasks(int64_t num_tasks, const Body& body, int worker);
  void AwaitHelpers();
  void WakeSome() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int num_threads_;
  const int num_spins_;  // checks of a flag before a thread sleeps

  std::vector<std::thread> helpers_;  // used only by the thread that calls Run
  std::atomic<uint64_t> num_loops_{0};
  std::atomic<int64_t> next_task_{0};
  std::atomic<int> num_helping_{0};  // changes under mu_
  std::atomic<bool> stopping_{false};

  Mutex mu_;
  CondVar loop_began_, helpers_done_;
  const Body* body_ ABSL_GUARDED_BY(mu_) = nullptr;  // of the loop that helpers may join; null without one
  int64_t num_tasks_ ABSL_GUARDED_BY(mu_) = 0;
  int num_sleeping_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
