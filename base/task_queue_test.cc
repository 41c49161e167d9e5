#include "base/task_queue.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/notification.h"

namespace switchyard {
namespace {

TEST(TaskQueue, RunsEverythingInOrder) {
  std::vector<int> order;  // only tasks write it, one after the other
  {
    TaskQueue queue;
    for (int i = 0; i < 100; ++i) queue.Add([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(TaskQueue, StartsAgainAfterItHadNothingToDo) {
  TaskQueue queue;
  for (int i = 0; i < 50; ++i) {
    Notification done;
    queue.Add([&done] { done.Notify(); });
    done.WaitForNotification();
  }
}

TEST(TaskQueue, ManyThreadsMayAddAndTasksToo) {
  int count = 0;  // only tasks write it
  {
    TaskQueue queue;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int j = 0; j < 50; ++j) {
          queue.Add([&] {
            ++count;
            queue.Add([&count] { ++count; });
          });
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(count, 400);
}

}  // namespace
}  // namespace switchyard
