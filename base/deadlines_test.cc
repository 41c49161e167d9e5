#include "base/deadlines.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/notification.h"

namespace switchyard {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

TEST(Deadlines, CallsInTheOrderOfTimesAndNeverEarly) {
  Deadlines deadlines;
  const SteadyTime start = Clock::Real().Now();
  std::vector<int> order;
  std::vector<SteadyTime> times;
  Notification last;
  const auto add = [&](int number, milliseconds after) {
    deadlines.Add(deadlines.NewKey(start + after), [&, number] {
      order.push_back(number);
      times.push_back(Clock::Real().Now());
      if (number == 3) last.Notify();
    });
  };
  add(3, milliseconds(30));
  add(1, milliseconds(10));
  add(2, milliseconds(20));
  last.WaitForNotification();
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
  for (int i = 0; i < 3; ++i) EXPECT_GE(times[i], start + milliseconds(10 * (i + 1)));
}

TEST(Deadlines, AnEarlierOneWakesTheThreadThatWaitsForALaterOne) {
  Deadlines deadlines;
  Notification expired;
  deadlines.Add(deadlines.NewKey(Clock::Real().Now() + hours(1)), [] { ADD_FAILURE() << "an hour has not passed"; });
  deadlines.Add(deadlines.NewKey(Clock::Real().Now()), [&] { expired.Notify(); });
  expired.WaitForNotification();
}

TEST(Deadlines, ARemovedOneIsNotCalledAndWhatItHoldsEnds) {
  Deadlines deadlines;
  Notification expired;
  const SteadyTime when = Clock::Real().Now() + milliseconds(20);
  const Deadlines::Key removed = deadlines.NewKey(when), kept = deadlines.NewKey(when);
  auto held = std::make_shared<int>(0);
  deadlines.Add(removed, [held] { ADD_FAILURE() << "it was removed"; });
  deadlines.Add(kept, [&] { expired.Notify(); });
  EXPECT_TRUE(deadlines.Remove(removed));
  EXPECT_EQ(held.use_count(), 1);
  expired.WaitForNotification();
  EXPECT_FALSE(deadlines.Remove(removed));
  EXPECT_FALSE(deadlines.Remove(kept));
}

TEST(Deadlines, AFunctionMayAddAndRemove) {
  Deadlines deadlines;
  Notification second;
  const Deadlines::Key never = deadlines.NewKey(Clock::Real().Now() + hours(1));
  deadlines.Add(never, [] { ADD_FAILURE() << "it was removed"; });
  deadlines.Add(deadlines.NewKey(Clock::Real().Now()), [&] {
    EXPECT_TRUE(deadlines.Remove(never));
    deadlines.Add(deadlines.NewKey(Clock::Real().Now()), [&] { second.Notify(); });
  });
  second.WaitForNotification();
}

TEST(Deadlines, NoneIsCalledAfterStop) {
  Deadlines deadlines;
  deadlines.Stop();
  deadlines.Add(deadlines.NewKey(Clock::Real().Now()), [] { ADD_FAILURE() << "stopped"; });
  deadlines.Stop();
}

TEST(Deadlines, WithoutAThreadTheOwnerRunsWhatIsDueByItsClock) {
  FakeClock clock;
  Deadlines deadlines(Threads::kNone, clock);
  EXPECT_EQ(deadlines.next(), SteadyTime::max());
  std::vector<int> order;
  const SteadyTime start = clock.Now();
  deadlines.Add(deadlines.NewKey(start + milliseconds(20)), [&] { order.push_back(2); });
  deadlines.Add(deadlines.NewKey(start + milliseconds(10)), [&] {
    order.push_back(1);
    deadlines.Add(deadlines.NewKey(start), [&] { order.push_back(0); });
  });
  deadlines.RunDue();
  EXPECT_TRUE(order.empty());
  EXPECT_EQ(deadlines.next(), start + milliseconds(10));
  clock.Advance(milliseconds(10));
  deadlines.RunDue();
  EXPECT_EQ(order, (std::vector<int>{1, 0}));
  deadlines.Stop();
  clock.Advance(milliseconds(10));
  deadlines.RunDue();
  EXPECT_EQ(order, (std::vector<int>{1, 0})) << "stopped";
}

TEST(Deadlines, ManyThreadsAddAndRemove) {
  Deadlines deadlines;
  std::atomic<int> expired{0}, removed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const Deadlines::Key key = deadlines.NewKey(Clock::Real().Now() + std::chrono::microseconds(i % 50));
        deadlines.Add(key, [&] { ++expired; });
        removed += deadlines.Remove(key);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  deadlines.Stop();
  EXPECT_EQ(expired + removed, 8000);
}

}  // namespace
}  // namespace switchyard
