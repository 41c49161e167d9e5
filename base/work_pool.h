// Helper threads for loops that must be short: unlike an OpenMP team, nobody waits for a thread that has not come.
//
// A loop's tasks are taken one by one, by the caller and by every helper that is awake in time. The caller returns when
// all tasks are done, so a helper whose core is busy with something else costs the loop nothing; a team's barrier would
// wait a scheduler's time slice for it. Helpers look out for the next loop for a few tens of µs, then sleep.
//
//   WorkPool pool(8);
//   pool.Run(rows, [&](int64_t row_idx, int worker) { Compute(row_idx, &scratch[worker]); });
//
// Thread-safety: one thread at a time calls Run.
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

  // Calls body for every task in [0, num_tasks), in no order, and returns when all calls have. What they wrote is
  // visible then. A single task runs on the caller and disturbs no helper.
  void Run(int64_t num_tasks, Body body);

 private:
  void StartHelpers();
  void Help(int worker);
  void AwaitLoop(uint64_t last_loop);
  void TakeTasks(int64_t num_tasks, const Body& body, int worker);
  void AwaitHelpers();
  void WakeSome() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int num_threads_;
  const int num_spins_;  // looks at a flag before going to sleep

  std::vector<std::thread> helpers_;  // of the thread that calls Run
  std::atomic<uint64_t> num_loops_{0};
  std::atomic<int64_t> next_task_{0};
  std::atomic<int> num_helping_{0};  // changes under mu_
  std::atomic<bool> stopping_{false};

  Mutex mu_;
  CondVar loop_began_, helpers_done_;
  const Body* body_ ABSL_GUARDED_BY(mu_) = nullptr;  // of the loop that helpers may join
  int64_t num_tasks_ ABSL_GUARDED_BY(mu_) = 0;
  int num_sleeping_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
