// ThreadSanitizer follows the order in which locks are taken, and ends a test at the first order that contradicts an
// earlier one, whether or not threads happen to meet there. docs/architecture.md relies on it.
#include <gtest/gtest.h>

#include "base/mutex.h"

namespace switchyard {
namespace {

void TakeBoth(Mutex* first, Mutex* second) {
  MutexLock outer(first);
  MutexLock inner(second);
}

TEST(LockOrderDeathTest, TwoLocksTakenInBothOrdersEndATest) {
  Mutex a, b;
  TakeBoth(&a, &b);
  EXPECT_DEATH(TakeBoth(&b, &a), "lock-order-inversion");
}

TEST(LockOrderDeathTest, ALongerCycleEndsATestToo) {
  Mutex a, b, c;
  TakeBoth(&a, &b);
  TakeBoth(&b, &c);
  EXPECT_DEATH(TakeBoth(&c, &a), "lock-order-inversion");
}

}  // namespace
}  // namespace switchyard
