#include "base/progress.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int64_t kMiB = 1 << 20;

TEST(ProgressTest, BytesInTheUnitThatFits) {
  EXPECT_EQ(BytesText(0), "0 B");
  EXPECT_EQ(BytesText(1023), "1023 B");
  EXPECT_EQ(BytesText(1536), "1.5 KiB");
  EXPECT_EQ(BytesText(812.3 * kMiB), "812.3 MiB");
  EXPECT_EQ(BytesText(1023.99 * kMiB), "1.0 GiB") << "not 1024.0 MiB";
  EXPECT_EQ(BytesText(650.0 * 1024 * kMiB), "650.0 GiB");
}

TEST(ProgressTest, DurationsInTheUnitThatFits) {
  EXPECT_EQ(DurationText(0.254), "0.25 s");
  EXPECT_EQ(DurationText(3), "3 s");
  EXPECT_EQ(DurationText(59.4), "59 s");
  EXPECT_EQ(DurationText(59.6), "1 min 00 s");
  EXPECT_EQ(DurationText(65), "1 min 05 s");
  EXPECT_EQ(DurationText(7385), "2 h 03 min");
}

TEST(ProgressTest, RateAndTimeLeftComeFromTheLastTenSeconds) {
  FakeClock clock;
  ProgressMeter meter(clock.Now());
  const int64_t total = 1000 * kMiB;
  Progress progress = meter.Update(clock.Now(), 0, total);
  EXPECT_EQ(progress.bytes_per_second, 0);
  EXPECT_FALSE(progress.seconds_left.has_value());
  EXPECT_EQ(ProgressText(progress), "0 B of 1000.0 MiB");
  for (int i = 1; i <= 10; ++i) {  // 1 MiB/s
    clock.Advance(seconds(1));
    progress = meter.Update(clock.Now(), i * kMiB, total);
    EXPECT_DOUBLE_EQ(progress.bytes_per_second, kMiB);
  }
  EXPECT_DOUBLE_EQ(*progress.seconds_left, 990);
  for (int i = 1; i <= 10; ++i) {  // then 10 MiB/s
    clock.Advance(seconds(1));
    progress = meter.Update(clock.Now(), (10 + 10 * i) * kMiB, total);
  }
  EXPECT_DOUBLE_EQ(progress.bytes_per_second, 10 * kMiB);
  EXPECT_DOUBLE_EQ(*progress.seconds_left, 89);
  EXPECT_EQ(ProgressText(progress), "110.0 MiB of 1000.0 MiB, 10.0 MiB/s, 1 min 29 s left");
}

TEST(ProgressTest, WhatIsDoneHasTheRateOfTheWhole) {
  FakeClock clock;
  ProgressMeter meter(clock.Now());
  meter.Update(clock.Now(), 0, 100 * kMiB);
  clock.Advance(milliseconds(18'000));
  meter.Update(clock.Now(), 10 * kMiB, 100 * kMiB);
  clock.Advance(milliseconds(2'000));
  EXPECT_EQ(ProgressText(meter.Update(clock.Now(), 100 * kMiB, 100 * kMiB)), "100.0 MiB in 20 s, 5.0 MiB/s");
}

TEST(ProgressTest, AWorkerThatBeganAgainIsMeasuredAnew) {
  FakeClock clock;
  ProgressMeter meter(clock.Now());
  clock.Advance(seconds(5));
  meter.Update(clock.Now(), 50 * kMiB, 100 * kMiB);
  clock.Advance(seconds(1));
  EXPECT_EQ(meter.Update(clock.Now(), 20 * kMiB, 100 * kMiB).bytes_per_second, 0);
  clock.Advance(seconds(2));
  const Progress progress = meter.Update(clock.Now(), 24 * kMiB, 100 * kMiB);
  EXPECT_DOUBLE_EQ(progress.bytes_per_second, 2 * kMiB);
  EXPECT_DOUBLE_EQ(progress.seconds, 2);
}

TEST(ProgressTest, NothingToLoadIsDone) {
  FakeClock clock;
  EXPECT_EQ(ProgressText(ProgressMeter(clock.Now()).Update(clock.Now(), 0, 0)), "0 B in 0 s");
}

TEST(ProgressTest, BarFillsTheLineAndNeverWraps) {
  const Progress half = {.bytes_done = 50 * kMiB,
                         .bytes_total = 100 * kMiB,
                         .seconds = 5,
                         .bytes_per_second = 10.0 * kMiB,
                         .seconds_left = 4.2};
  const std::string text = " 50 %  50.0 MiB of 100.0 MiB, 10.0 MiB/s, 5 s left";
  EXPECT_EQ(ProgressBar("m", half, 120), "m  [" + std::string(20, '#') + std::string(20, '-') + "]  " + text);
  EXPECT_EQ(ProgressBar("m", half, 66), "m  [####----]  " + text) << "8 columns of bar are the fewest";
  EXPECT_EQ(ProgressBar("m", half, 65), "m  " + text);
  for (int columns = 0; columns < 130; ++columns) {
    EXPECT_LT(ProgressBar("model", half, columns).size(), std::max(columns, 1));
  }
  EXPECT_EQ(ProgressBar("\u00e4\u00e4", half, 4), "\u00e4") << "a letter is not cut in two";
}

TEST(ProgressTest, OnlyWhatIsDoneIsAHundredPercent) {
  const Progress almost = {.bytes_done = 999'999, .bytes_total = 1'000'000};
  EXPECT_NE(ProgressBar("m", almost, 120).find(" 99 %"), std::string::npos);
  const Progress done = {.bytes_done = 1'000'000, .bytes_total = 1'000'000, .seconds = 1};
  EXPECT_NE(ProgressBar("m", done, 120).find("100 %"), std::string::npos);
}

}  // namespace
}  // namespace switchyard
