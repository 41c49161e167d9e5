#include "moe/experts/cuda/step_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "moe/plan/placement.h"

namespace switchyard {
namespace {

using testing::ElementsAre;

RankPlan PlanOfCounts(const std::vector<int>& rows_per_expert) {
  RankPlan plan;
  plan.expert_offsets = {0};
  for (const int rows : rows_per_expert) {
    for (int i = 0; i < rows; ++i) {
      plan.pair_rows.push_back(i);
      plan.pair_weights.push_back(1.0f);
    }
    plan.expert_offsets.push_back(static_cast<int32_t>(plan.pair_rows.size()));
  }
  plan.recv_offsets = {0,
                       rows_per_expert.empty() ? 0 : *std::max_element(rows_per_expert.begin(), rows_per_expert.end())};
  plan.send_offsets = {0, 0};
  return plan;
}

TEST(StepTables, ListsPairsOfEveryRowInExpertOrder) {
  RankPlan plan;
  plan.recv_offsets = {0, 3};
  plan.send_offsets = {0, 0};
  plan.expert_offsets = {0, 2, 2, 4};
  plan.pair_rows = {0, 2, 0, 2};  // row 1 has none
  plan.pair_weights = {0.5f, 0.25f, 0.125f, 1.0f};
  std::vector<int32_t> offsets(4), indices(4);
  std::vector<float> weights(4);
  ListPairs(plan.view(), 1, {offsets, indices, weights});
  EXPECT_THAT(offsets, ElementsAre(0, 2, 2, 4));
  EXPECT_THAT(indices, ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(weights, ElementsAre(0.5f, 0.125f, 0.25f, 1.0f));
}

TEST(StepTables, ListsEveryPartOfAPair) {
  RankPlan plan;
  plan.recv_offsets = {0, 2};
  plan.send_offsets = {0, 0};
  plan.expert_offsets = {0, 1, 3};
  plan.pair_rows = {1, 0, 1};
  plan.pair_weights = {0.5f, 0.25f, 0.125f};
  std::vector<int32_t> offsets(3), indices(6);
  std::vector<float> weights(6);
  ListPairs(plan.view(), 2, {offsets, indices, weights});
  EXPECT_THAT(offsets, ElementsAre(0, 2, 6));
  EXPECT_THAT(indices, ElementsAre(1, 4, 0, 3, 2, 5));
  EXPECT_THAT(weights, ElementsAre(0.25f, 0.25f, 0.5f, 0.5f, 0.125f, 0.125f));
}

TEST(StepTables, ListsReturnsInSendOrder) {
  RankPlan plan;
  plan.num_home_rows = 3;
  plan.send_offsets = {0, 2, 4};
  plan.send_rows = {0, 2, 1, 2};
  plan.recv_offsets = {0, 0, 0};
  plan.expert_offsets = {0};
  std::vector<int32_t> offsets(4), indices(4);
  ListReturns(plan.view(), {offsets, indices, {}});
  EXPECT_THAT(offsets, ElementsAre(0, 1, 2, 4));
  EXPECT_THAT(indices, ElementsAre(0, 2, 1, 3));
}

TEST(StepTables, TilesCoverEveryPairOnceAndKeepToTheirExpert) {
  for (const int max_rows : {32, 128, 256}) {
    const std::vector<int> counts = {0, 1, 8, 9, 31, 32, 33, 255, 256, 257, 1000, 0, 5000};
    const RankPlan plan = PlanOfCounts(counts);
    std::vector<TileGroup> groups;
    const int num_tiles = CutTiles(plan.view(), max_rows, groups);
    std::vector<int> covered(plan.pair_rows.size(), 0);
    int tiles = 0;
    for (const TileGroup& group : groups) {
      EXPECT_EQ(group.first_tile, tiles);
      tiles += group.num_tiles;
      EXPECT_LE(group.rows_per_tile, max_rows);
      EXPECT_GT(group.num_rows, (group.num_tiles - 1) * group.rows_per_tile);
      EXPECT_LE(group.num_rows, group.num_tiles * group.rows_per_tile);
      EXPECT_GE(group.first_row, plan.expert_offsets[group.slot]);
      EXPECT_LE(group.first_row + group.num_rows, plan.expert_offsets[group.slot + 1]);
      for (int i = 0; i < group.num_rows; ++i) ++covered[group.first_row + i];
    }
    EXPECT_EQ(tiles, num_tiles);
    EXPECT_THAT(covered, testing::Each(1));
    EXPECT_LE(static_cast<int64_t>(groups.size()),
              MaxGroups(plan.pair_rows.size(), static_cast<int>(counts.size()), max_rows));
  }
}

TEST(StepTables, TilesOfOneExpertAreEven) {
  std::vector<TileGroup> groups;
  EXPECT_EQ(CutTiles(PlanOfCounts({264}).view(), 256, groups), 2);
  EXPECT_EQ(groups[0].rows_per_tile, 144);  // 132 rows, rounded up to a multiple of 16
}

TEST(StepTables, RunsOfRowsAreNoticed) {
  RankPlan plan = PlanOfCounts({3, 0, 2});
  EXPECT_TRUE(TakesRuns(plan.view()));
  plan.pair_rows = {0, 1, 2, 1, 2};
  EXPECT_TRUE(TakesRuns(plan.view()));
  std::vector<TileGroup> groups;
  CutTiles(plan.view(), 32, groups);
  EXPECT_EQ(groups[1].source_row, 1);
  EXPECT_EQ(groups[1].first_row, 3);
  plan.pair_rows = {0, 2, 3, 1, 2};
  EXPECT_FALSE(TakesRuns(plan.view()));
}

TEST(Layouts, PackedOffsetsAreAPermutation) {
  std::set<int64_t> seen;
  for (int row = 0; row < 128; ++row) {
    for (int col = 0; col < 192; ++col) seen.insert(PackedOffset(row, col, 3));
  }
  EXPECT_EQ(seen.size(), 128 * 192);
  EXPECT_EQ(*seen.rbegin(), 128 * 192 - 1);
}

TEST(Layouts, InterleavedRowsAreAPermutation) {
  std::set<int64_t> seen;
  for (int h = 0; h < 64; ++h) {
    for (const bool is_up : {false, true}) seen.insert(InterleavedRow(h, is_up));
  }
  EXPECT_EQ(seen.size(), 128);
  EXPECT_EQ(*seen.rbegin(), 127);
  // Gate and up of an output are 8 rows apart, so that one thread's sums hold both.
  EXPECT_EQ(InterleavedRow(13, true), InterleavedRow(13, false) + 8);
}

}  // namespace
}  // namespace switchyard
