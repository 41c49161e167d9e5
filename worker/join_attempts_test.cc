#include "worker/join_attempts.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

using std::chrono::milliseconds;

constexpr JoinTimes kTimes = {.join = milliseconds(1000), .rejoin = milliseconds(60'000)};

TEST(JoinAttempts, PausesGrowAndDifferByChance) {
  const SteadyTime now;
  JoinAttempts attempts(kTimes, /*seed=*/1, now);
  milliseconds longest = kTimes.shortest_pause;
  std::optional<SteadyTime> welcomed_at = now;
  for (int i = 0; i < 12; ++i) {
    const auto pause = attempts.PauseAfter(welcomed_at, now);
    ASSERT_TRUE(pause.has_value());
    EXPECT_GE(*pause, longest / 2);
    EXPECT_LE(*pause, longest);
    longest = std::min(2 * longest, kTimes.longest_pause);
    welcomed_at = std::nullopt;
  }
  JoinAttempts first(kTimes, 1, now), second(kTimes, 2, now);
  bool differ = false;
  for (int i = 0; i < 12; ++i) {
    differ = first.PauseAfter(std::nullopt, now) != second.PauseAfter(std::nullopt, now) || differ;
  }
  EXPECT_TRUE(differ) << "workers of one front must not come at once";
}

TEST(JoinAttempts, PausesAreShortAgainAfterASessionThatLasted) {
  SteadyTime now;
  JoinAttempts attempts(kTimes, 1, now);
  for (int i = 0; i < 10; ++i) attempts.PauseAfter(now, now);
  EXPECT_GT(*attempts.PauseAfter(now, now), kTimes.shortest_pause) << "it was welcomed only to be lost";
  const SteadyTime welcomed_at = now;
  now += kTimes.lasting_session;
  EXPECT_LE(*attempts.PauseAfter(welcomed_at, now), kTimes.shortest_pause);
}

TEST(JoinAttempts, GivesUpAfterTheTimeToJoinAndLaterAfterTheTimeToRejoin) {
  SteadyTime now;
  JoinAttempts attempts(kTimes, 1, now);
  now += kTimes.join - milliseconds(10);
  EXPECT_EQ(attempts.WelcomeDue(now), now + milliseconds(10));
  EXPECT_LE(*attempts.PauseAfter(std::nullopt, now), milliseconds(10)) << "no pause goes beyond the end";
  EXPECT_EQ(attempts.PauseAfter(std::nullopt, now + milliseconds(10)), std::nullopt);
  EXPECT_EQ(attempts.patience(), kTimes.join);

  now += milliseconds(1'000'000);
  EXPECT_TRUE(attempts.PauseAfter(now, now).has_value()) << "a welcome makes all earlier attempts forgotten";
  EXPECT_EQ(attempts.patience(), kTimes.rejoin);
  EXPECT_EQ(attempts.WelcomeDue(now), now + kTimes.attempt);
  EXPECT_TRUE(attempts.PauseAfter(std::nullopt, now + kTimes.rejoin - milliseconds(1)).has_value());
  EXPECT_EQ(attempts.PauseAfter(std::nullopt, now + kTimes.rejoin), std::nullopt);
}

TEST(JoinAttempts, WithoutATimeToRejoinALostFrontIsTheEnd) {
  const SteadyTime now;
  JoinAttempts attempts({.rejoin = milliseconds(0)}, 1, now);
  EXPECT_TRUE(attempts.PauseAfter(std::nullopt, now).has_value()) << "it still waits for a front that is not up yet";
  EXPECT_EQ(attempts.PauseAfter(now, now), std::nullopt);
}

}  // namespace
}  // namespace switchyard
