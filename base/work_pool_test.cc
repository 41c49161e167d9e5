#include "base/work_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

namespace switchyard {
namespace {

TEST(WorkPool, EveryTaskRunsOnceAndIsDoneOnReturn) {
  for (const int num_threads : {1, 2, 5}) {
    WorkPool pool(num_threads);
    for (int64_t num_tasks = 0; num_tasks < 400; ++num_tasks) {
      std::vector<int> runs(num_tasks, 0);  // not atomic: only one task writes each, and Run makes that visible
      pool.Run(num_tasks, [&](int64_t task, int) { ++runs[task]; });
      EXPECT_EQ(runs, std::vector<int>(num_tasks, 1));
    }
  }
}

TEST(WorkPool, AWorkerNumberBelongsToOneThreadAtATime) {
  WorkPool pool(3);
  std::vector<std::atomic<int>> running(3);
  std::atomic<int> num_clashes = 0;
  for (int loop = 0; loop < 200; ++loop) {
    pool.Run(50, [&](int64_t, int worker) {
      if (running.at(worker)++ != 0) ++num_clashes;
      --running[worker];
    });
  }
  EXPECT_EQ(num_clashes, 0);
}

TEST(WorkPool, HelpersTakePart) {
  WorkPool pool(2);
  std::atomic<int> num_in = 0;
  // Neither call returns before both threads are in.
  pool.Run(2, [&](int64_t, int) {
    ++num_in;
    while (num_in < 2) std::this_thread::yield();
  });
  EXPECT_EQ(num_in, 2);
}

TEST(WorkPool, ASingleTaskStaysOnTheCaller) {
  WorkPool pool(4);
  pool.Run(1, [&, caller = std::this_thread::get_id()](int64_t, int worker) {
    EXPECT_EQ(worker, 0);
    EXPECT_EQ(std::this_thread::get_id(), caller);
  });
}

}  // namespace
}  // namespace switchyard
