#include "server/steps/step_durations.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

using std::chrono::milliseconds;

constexpr LayerId kLayer{3};

TEST(StepDurationsTest, NothingIsKnownAtFirst) {
  StepDurations durations;
  EXPECT_EQ(durations.Limit(kLayer, 8), StepDurations::kUnknown);
  durations.Record(LayerId{2}, 8, milliseconds(1000));
  durations.Record(LayerId{4}, 8, milliseconds(1000));
  EXPECT_EQ(durations.Limit(kLayer, 8), StepDurations::kUnknown) << "other layers tell nothing";
}

TEST(StepDurationsTest, AMultipleOfWhatStepsOfThatSizeTake) {
  StepDurations durations;
  durations.Record(kLayer, 8, milliseconds(1000));
  durations.Record(kLayer, 1000, milliseconds(9000));
  EXPECT_EQ(durations.Limit(kLayer, 8), milliseconds(10'000));
  EXPECT_EQ(durations.Limit(kLayer, 15), milliseconds(10'000));
  EXPECT_EQ(durations.Limit(kLayer, 1), milliseconds(10'000)) << "smaller steps are no slower";
  EXPECT_EQ(durations.Limit(kLayer, 16), milliseconds(90'000)) << "the next larger size that was seen";
}

TEST(StepDurationsTest, LargerStepsThanWereSeenGetMoreTimeWithinReason) {
  StepDurations durations;
  durations.Record(kLayer, 8, milliseconds(1000));
  EXPECT_EQ(durations.Limit(kLayer, 16), milliseconds(20'000)) << "twice as many rows as were seen";
  EXPECT_EQ(durations.Limit(kLayer, 4096), StepDurations::kUnknown);
  durations.Record(kLayer, 8, milliseconds(20'000));
  EXPECT_EQ(durations.Limit(kLayer, 4096), milliseconds(200'000)) << "no less than a step of few rows";
}

TEST(StepDurationsTest, ShortStepsGetTheFloor) {
  StepDurations durations;
  durations.Record(kLayer, 8, milliseconds(1));
  EXPECT_EQ(durations.Limit(kLayer, 8), StepDurations::kFloor);
}

TEST(StepDurationsTest, TheSlowestRecentStepCounts) {
  StepDurations durations;
  durations.Record(kLayer, 8, milliseconds(1000));
  durations.Record(kLayer, 8, milliseconds(2000));
  durations.Record(kLayer, 8, milliseconds(2000));
  EXPECT_EQ(durations.Limit(kLayer, 8), milliseconds(20'000));
  for (int i = 0; i < 200; ++i) durations.Record(kLayer, 8, milliseconds(500));
  EXPECT_NEAR(durations.Limit(kLayer, 8).count(), 5000, 100) << "a slow one is forgotten in time";
}

TEST(StepDurationsTest, AbsurdDurationsDoNotOverflow) {
  StepDurations durations;
  durations.Record(kLayer, 1, std::chrono::nanoseconds::max());
  EXPECT_GT(durations.Limit(kLayer, 1), milliseconds(0));
  EXPECT_GT(durations.Limit(kLayer, int64_t{1} << 40), milliseconds(0));
}

TEST(StepDurationsTest, AForgottenLayerIsUnknown) {
  StepDurations durations;
  durations.Record(kLayer, 8, milliseconds(1000));
  durations.Record(kLayer, 1, milliseconds(1000));
  durations.Forget(kLayer);
  EXPECT_EQ(durations.Limit(kLayer, 8), StepDurations::kUnknown);
}

}  // namespace
}  // namespace switchyard
