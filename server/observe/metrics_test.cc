#include "server/observe/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <prometheus/text_serializer.h>

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class MetricsTest : public testing::Test {
 protected:
  MetricsTest() { Add({0}, 4); }

  void Add(LayerId id, int num_experts) {
    LayerSpec spec;
    spec.name = "1";
    spec.num_experts = num_experts;
    metrics_.AddLayer(ServedLayer{.id = id,
                                  .model = "m",
                                  .spec = spec,
                                  .gates = {},
                                  .on_group = {FirstPlacement(Placement::Even(num_experts, 2))}});
  }

  std::string Text() { return prometheus::TextSerializer().Serialize(metrics_.registry().Collect()); }

  Metrics metrics_;
};

TEST_F(MetricsTest, LoadOfRanksAndItsImbalance) {
  StepRecord record = {.layer = {0}, .num_rows = 8, .rows_per_rank = {12, 4}};
  metrics_.RecordStep(record, {6, 6, 4, 0});
  record.rows_per_rank = {3, 3};
  metrics_.RecordStep(record, {3, 0, 3, 0});
  EXPECT_THAT(Text(), AllOf(HasSubstr("switchyard_rank_rows_total{layer=\"1\",model=\"m\",rank=\"0\"} 15"),
                            HasSubstr("switchyard_rank_rows_total{layer=\"1\",model=\"m\",rank=\"1\"} 7"),
                            HasSubstr("switchyard_imbalance_ratio{layer=\"1\",model=\"m\"} 1\n"),
                            HasSubstr("switchyard_step_imbalance_ratio_sum{layer=\"1\",model=\"m\"} 2.5\n"),
                            HasSubstr("switchyard_step_imbalance_ratio_bucket{layer=\"1\",model=\"m\",le=\"1\"} 1\n")));
  EXPECT_THAT(metrics_.RowsPerExpert({0}), testing::ElementsAre(9, 6, 7, 0));
}

TEST_F(MetricsTest, TheAgeOfTheOldestStep) {
  EXPECT_THAT(Text(), HasSubstr("switchyard_oldest_step_seconds 0\n"));
  metrics_.SetOldestStep(std::chrono::milliseconds(1500));
  EXPECT_THAT(Text(), HasSubstr("switchyard_oldest_step_seconds 1.5\n"));
}

TEST_F(MetricsTest, AStepWithoutLoadHasNoImbalance) {
  metrics_.RecordStep({.layer = {0}, .num_rows = 8, .rows_per_rank = {0, 0}}, {0, 0, 0, 0});
  EXPECT_THAT(Text(), HasSubstr("switchyard_step_imbalance_ratio_count{layer=\"1\",model=\"m\"} 0\n"));
}

TEST_F(MetricsTest, RequestsByCodeAndLayer) {
  metrics_.RecordRequest({0}, absl::StatusCode::kOk, {.num_steps = 1, .queue_us = 10}, 50);
  metrics_.RecordRequest({0}, absl::StatusCode::kOk, {.num_steps = 1, .queue_us = 10}, 50);
  metrics_.RecordRequest({0}, absl::StatusCode::kInternal, {}, 50);
  metrics_.RecordRejection(absl::StatusCode::kResourceExhausted, LayerId{0});
  metrics_.RecordRejection(absl::StatusCode::kNotFound, std::nullopt);
  EXPECT_THAT(Text(),
              AllOf(HasSubstr("switchyard_requests_total{code=\"OK\",layer=\"1\",model=\"m\"} 2\n"),
                    HasSubstr("switchyard_requests_total{code=\"INTERNAL\",layer=\"1\",model=\"m\"} 1\n"),
                    HasSubstr("switchyard_requests_total{code=\"RESOURCE_EXHAUSTED\",layer=\"1\",model=\"m\"} 1\n"),
                    HasSubstr("switchyard_requests_total{code=\"NOT_FOUND\",layer=\"\",model=\"\"} 1\n"),
                    Not(HasSubstr("UNAVAILABLE"))));
}

TEST_F(MetricsTest, ALayerThatComesAgainGoesOnCounting) {
  metrics_.RecordRequest({0}, absl::StatusCode::kOk, {.num_steps = 1}, 50);
  metrics_.RecordStep({.layer = {0}, .num_rows = 1, .rows_per_rank = {1, 0}}, {1, 0, 0, 0});
  Add({7}, 6);
  metrics_.RecordRequest({7}, absl::StatusCode::kOk, {.num_steps = 1}, 50);
  metrics_.RecordRequest({0}, absl::StatusCode::kOk, {.num_steps = 1}, 50);
  metrics_.RecordStep({.layer = {7}, .num_rows = 1, .rows_per_rank = {1, 0}}, {1, 0, 0, 0, 0, 1});
  EXPECT_THAT(Text(), HasSubstr("switchyard_requests_total{code=\"OK\",layer=\"1\",model=\"m\"} 3\n"));
  EXPECT_THAT(metrics_.RowsPerExpert({7}), testing::ElementsAre(2, 0, 0, 0, 0, 1));
  const auto all = metrics_.AllStatistics();
  ASSERT_EQ(all.size(), 1);
  EXPECT_EQ(all[0].first, "m.1");
  EXPECT_EQ(all[0].second.success.count, 3);
}

// Bytes that the program has allocated and not freed. 0 under sanitizers, which replace malloc.
size_t LiveBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

TEST_F(MetricsTest, LayersThatAreGoneTakeNoMemory) {
  constexpr int32_t kLoads = 2000;
  const auto load_and_unload = [&](int32_t id) {
    Add({id}, 4);
    metrics_.RemoveLayers({{id}});
  };
  load_and_unload(1);
  const size_t before = LiveBytes();
  for (int32_t id = 2; id < kLoads; ++id) load_and_unload(id);
  EXPECT_LT(LiveBytes(), before + kLoads);
}

}  // namespace
}  // namespace switchyard
