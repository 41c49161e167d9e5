#include "base/process/stop_signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <latch>
#include <thread>

namespace switchyard {
namespace {

TEST(StopSignals, ReachTheThreadThatWaitsPastThoseThatDoNotBlockThem) {
  std::latch started(2), ended(2);
  std::thread of_a_library([&] {
    started.arrive_and_wait();
    ended.arrive_and_wait();
  });
  started.arrive_and_wait();
  const sigset_t signals = KeepSignalsForThisThread({SIGTERM});
  // No thread waits for the signal yet, so the system gives it to the thread that does not block it.
  ASSERT_EQ(kill(getpid(), SIGTERM), 0);
  const timespec timeout = {.tv_sec = 30, .tv_nsec = 0};
  EXPECT_EQ(sigtimedwait(&signals, nullptr, &timeout), SIGTERM);
  ended.arrive_and_wait();
  of_a_library.join();
}

}  // namespace
}  // namespace switchyard
