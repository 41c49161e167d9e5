#include "server/observe/layer_statistics.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(LayerStatistics, StagesAddUpToTheTotalAndShareItsCount) {
  LayerStatistics statistics;
  statistics.RecordSuccess({.num_steps = 1, .queue_us = 10, .gate_us = 3, .plan_us = 2, .step_us = 50}, 70);
  statistics.RecordSuccess({.num_steps = 1, .queue_us = 1, .gate_us = 1, .plan_us = 1, .step_us = 1}, 4);
  statistics.RecordFailure(absl::StatusCode::kInternal, 9);
  const auto counts = statistics.snapshot();
  for (const Tally& tally : {counts.success, counts.queue, counts.input, counts.infer, counts.output}) {
    EXPECT_EQ(tally.count, 2);
  }
  EXPECT_EQ(counts.success.total_us, 74);
  EXPECT_EQ(counts.queue.total_us, 11);
  EXPECT_EQ(counts.input.total_us, 7);
  EXPECT_EQ(counts.infer.total_us, 51);
  EXPECT_EQ(counts.output.total_us, 5);
  EXPECT_EQ(counts.failure.count, 1);
  EXPECT_EQ(counts.failure.total_us, 9);
  EXPECT_GT(counts.last_success, absl::UnixEpoch());
}

TEST(LayerStatistics, FailuresAreToldApart) {
  LayerStatistics statistics;
  for (const auto code : {absl::StatusCode::kResourceExhausted, absl::StatusCode::kDeadlineExceeded,
                          absl::StatusCode::kCancelled, absl::StatusCode::kInternal, absl::StatusCode::kInvalidArgument,
                          absl::StatusCode::kInvalidArgument, absl::StatusCode::kInvalidArgument}) {
    statistics.RecordFailure(code, 1);
  }
  EXPECT_EQ(statistics.snapshot().failures_by_reason, (std::array<int64_t, 4>{2, 1, 1, 3}));
  EXPECT_STREQ(FailureReasonName(FailureReason::kCanceled), "CANCELED");
  EXPECT_STREQ(FailureReasonName(FailureReason::kOther), "OTHER");
}

TEST(LayerStatistics, OverlappingStepsOfOneRequestLeaveNoNegativeRest) {
  LayerStatistics statistics;
  statistics.RecordSuccess({.num_steps = 4, .queue_us = 100, .gate_us = 10, .plan_us = 10, .step_us = 400}, 150);
  EXPECT_EQ(statistics.snapshot().output.total_us, 0);
}

TEST(LayerStatistics, StepsAreGroupedByPowersOfTwo) {
  LayerStatistics statistics;
  for (int64_t rows : {1, 2, 3, 4, 5, 100, 128, 129}) statistics.RecordStep(rows, rows, 10 * rows);
  const auto counts = statistics.snapshot();
  EXPECT_EQ(counts.num_steps, 8);
  std::map<int64_t, int64_t> counted;
  for (const auto& [rows, tally] : counts.steps) {
    counted[rows] = tally.infer.count;
    EXPECT_EQ(tally.infer.total_us, 10 * tally.input.total_us);
  }
  EXPECT_EQ(counted, (std::map<int64_t, int64_t>{{1, 1}, {2, 1}, {4, 2}, {8, 1}, {128, 2}, {256, 1}}));
}

}  // namespace
}  // namespace switchyard
