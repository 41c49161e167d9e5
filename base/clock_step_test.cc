// Waits do not notice when somebody sets the wall clock back.
//
// This program's wall clock is an hour ahead of the kernel's: a wait that computes its end by the wall clock and sleeps
// by the kernel's would sleep an hour longer than it was told to, exactly as after a step of the clock backwards.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <chrono>

#include "base/deadlines.h"
#include "base/mutex.h"
#include "base/notification.h"

extern "C" int clock_gettime(clockid_t clock, timespec* time) {
  const int result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (clock == CLOCK_REALTIME) time->tv_sec += 3600;
  return result;
}

namespace switchyard {
namespace {

using std::chrono::milliseconds;

// The test's own limit is minutes, the step of the clock an hour.
TEST(ClockStep, IsThere) {
  timespec kernel;
  ASSERT_EQ(syscall(SYS_clock_gettime, CLOCK_REALTIME, &kernel), 0);
  EXPECT_GE(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now()), kernel.tv_sec + 3590);
}

TEST(ClockStep, DoesNotDelayACondVar) {
  Mutex mu;
  CondVar changed;
  MutexLock lock(&mu);
  EXPECT_TRUE(changed.WaitFor(&mu, milliseconds(20)));
  EXPECT_TRUE(changed.WaitUntil(&mu, std::chrono::steady_clock::now() + milliseconds(20)));
}

TEST(ClockStep, DoesNotDelayADeadline) {
  Deadlines deadlines;
  Notification expired;
  deadlines.Add(deadlines.NewKey(Clock::Real().Now() + milliseconds(20)), [&] { expired.Notify(); });
  expired.WaitForNotification();
}

}  // namespace
}  // namespace switchyard
