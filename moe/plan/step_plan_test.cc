#include "moe/plan/step_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>

#include "moe/plan/testing.h"

namespace switchyard {
namespace {

// (row of the step, expert) and the weight it was computed with.
using WeightedPairs = std::map<std::pair<int64_t, int>, float>;

WeightedPairs PairsOf(const Routing& routing) {
  WeightedPairs pairs;
  for (int64_t i = 0; i < routing.num_rows * routing.top_k; ++i) {
    if (routing.expert_idx[i] >= 0) pairs[{i / routing.top_k, routing.expert_idx[i]}] = routing.weight[i];
  }
  return pairs;
}

// The rows of the step that a rank receives: the sources' blocks in rank order, each in the order it was sent.
std::vector<int64_t> ReceivedRows(const StepPlan& plan, int destination) {
  std::vector<int64_t> rows;
  for (size_t source = 0; source < plan.ranks.size(); ++source) {
    const RankPlan& sender = plan.ranks[source];
    const int32_t begin = sender.send_offsets[destination], end = sender.send_offsets[destination + 1];
    EXPECT_EQ(end - begin,
              plan.ranks[destination].recv_offsets[source + 1] - plan.ranks[destination].recv_offsets[source])
        << source << " to " << destination;
    for (int32_t i = begin; i < end; ++i) rows.push_back(plan.home_offsets[source] + sender.send_rows[i]);
  }
  return rows;
}

// Follows every row from home to destination to pair. Pairs that occur twice fail the test.
WeightedPairs FollowRows(const StepPlan& plan, const Placement& placement) {
  WeightedPairs computed;
  for (int rank = 0; rank < placement.num_ranks(); ++rank) {
    const std::vector<int64_t> received = ReceivedRows(plan, rank);
    const RankPlanView view = plan.ranks[rank].view();
    EXPECT_EQ(view.num_recv_rows(), static_cast<int64_t>(received.size()));
    for (int slot = 0; slot < view.num_slots(); ++slot) {
      const int expert = placement.experts_of(rank)[slot];
      for (int32_t pair = view.expert_offsets[slot]; pair < view.expert_offsets[slot + 1]; ++pair) {
        const auto key = std::make_pair(received[view.pair_rows[pair]], expert);
        EXPECT_TRUE(computed.emplace(key, view.pair_weights[pair]).second) << "row " << key.first << " twice";
      }
    }
  }
  return computed;
}

// Follows every partial sum back: row of the step and the ranks whose sums it gets, in the order they are added.
std::map<int64_t, std::vector<int>> FollowBack(const StepPlan& plan) {
  std::map<int64_t, std::vector<int>> ranks_of_row;
  for (size_t home = 0; home < plan.ranks.size(); ++home) {
    const RankPlan& rank = plan.ranks[home];
    for (size_t destination = 0; destination < plan.ranks.size(); ++destination) {
      for (int32_t i = rank.send_offsets[destination]; i < rank.send_offsets[destination + 1]; ++i) {
        ranks_of_row[plan.home_offsets[home] + rank.send_rows[i]].push_back(destination);
      }
    }
  }
  return ranks_of_row;
}

int HomeOf(const std::vector<int64_t>& home_offsets, int64_t row) {
  int home = 0;
  while (row >= home_offsets[home + 1]) ++home;
  return home;
}

// Straight from the definition: the distinct ranks that hold an expert of the row, and its home for shared experts.
std::set<int> DestinationsOf(const PlanCase& plan_case, int64_t row) {
  std::set<int> ranks;
  const int home = HomeOf(plan_case.home_offsets, row);
  const Routing& routing = plan_case.routing;
  for (int64_t i = row * routing.top_k; i < (row + 1) * routing.top_k; ++i) {
    if (routing.expert_idx[i] >= 0) ranks.insert(plan_case.placement.place(routing.expert_idx[i], home).rank);
  }
  return ranks;
}

template <typename T>
void ExpectOffsets(const std::vector<int32_t>& offsets, size_t num_segments, const std::vector<T>& array) {
  ASSERT_EQ(offsets.size(), num_segments + 1);
  EXPECT_EQ(offsets.front(), 0);
  EXPECT_TRUE(std::is_sorted(offsets.begin(), offsets.end()));
  EXPECT_EQ(offsets.back(), static_cast<int32_t>(array.size()));
}

void ExpectStrictlyIncreasing(const std::vector<int32_t>& offsets, const std::vector<int32_t>& indices) {
  for (size_t segment = 0; segment + 1 < offsets.size(); ++segment) {
    for (int32_t i = offsets[segment] + 1; i < offsets[segment + 1]; ++i) EXPECT_LT(indices[i - 1], indices[i]);
  }
}

TEST(StepPlanTest, EveryPairIsComputedOnceWithItsWeight) {
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan plan = PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets);
    EXPECT_EQ(FollowRows(plan, plan_case.placement), PairsOf(plan_case.routing));
  }
}

TEST(StepPlanTest, EverySumReturnsHomeOnceInRankOrder) {
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan plan = PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets);
    const auto returned = FollowBack(plan);
    for (int64_t row = 0; row < plan_case.routing.num_rows; ++row) {
      const std::set<int> expected = DestinationsOf(plan_case, row);
      const auto it = returned.find(row);
      const std::vector<int> ranks = it == returned.end() ? std::vector<int>() : it->second;
      EXPECT_EQ(ranks, std::vector<int>(expected.begin(), expected.end())) << "row " << row;
    }
  }
}

TEST(StepPlanTest, ExchangeVolumeIsWhatTheRoutingImplies) {
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan plan = PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets);
    int64_t num_crossing_rows = 0;
    ASSERT_EQ(static_cast<int64_t>(plan.crossings.size()), plan_case.routing.num_rows);
    for (int64_t row = 0; row < plan_case.routing.num_rows; ++row) {
      std::set<int> destinations = DestinationsOf(plan_case, row);
      destinations.erase(HomeOf(plan_case.home_offsets, row));
      EXPECT_EQ(plan.crossings[row], destinations.size()) << "row " << row;
      num_crossing_rows += destinations.size();
    }
    EXPECT_EQ(plan.num_crossing_rows, num_crossing_rows);
    int64_t num_sent_elsewhere = 0;
    for (size_t rank = 0; rank < plan.ranks.size(); ++rank) {
      const RankPlan& sender = plan.ranks[rank];
      num_sent_elsewhere += sender.send_rows.size() - (sender.send_offsets[rank + 1] - sender.send_offsets[rank]);
    }
    EXPECT_EQ(num_sent_elsewhere, num_crossing_rows);
  }
}

TEST(StepPlanTest, ArraysKeepTheOrdersTheHeaderPromises) {
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan plan = PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets);
    const size_t num_ranks = plan_case.placement.num_ranks();
    ASSERT_EQ(plan.ranks.size(), num_ranks);
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      const RankPlan& rank_plan = plan.ranks[rank];
      EXPECT_EQ(rank_plan.num_home_rows, plan_case.home_offsets[rank + 1] - plan_case.home_offsets[rank]);
      ExpectOffsets(rank_plan.send_offsets, num_ranks, rank_plan.send_rows);
      ExpectOffsets(rank_plan.expert_offsets, plan_case.placement.experts_of(rank).size(), rank_plan.pair_rows);
      EXPECT_EQ(rank_plan.pair_weights.size(), rank_plan.pair_rows.size());
      ExpectStrictlyIncreasing(rank_plan.send_offsets, rank_plan.send_rows);
      ExpectStrictlyIncreasing(rank_plan.expert_offsets, rank_plan.pair_rows);
    }
  }
}

TEST(StepPlanTest, RowsPerExpertCountsChoices) {
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    std::vector<int64_t> expected(plan_case.placement.num_experts());
    for (const int32_t expert : plan_case.routing.expert_idx) {
      if (expert >= 0 && expert < plan_case.placement.num_experts()) ++expected[expert];
    }
    EXPECT_EQ(PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets).rows_per_expert, expected);
  }
}

void ExpectEqual(const StepPlan& one, const StepPlan& other) {
  EXPECT_EQ(one.home_offsets, other.home_offsets);
  EXPECT_EQ(one.rows_per_expert, other.rows_per_expert);
  EXPECT_EQ(one.crossings, other.crossings);
  EXPECT_EQ(one.num_crossing_rows, other.num_crossing_rows);
  ASSERT_EQ(one.ranks.size(), other.ranks.size());
  for (size_t rank = 0; rank < one.ranks.size(); ++rank) {
    const RankPlan &a = one.ranks[rank], &b = other.ranks[rank];
    EXPECT_EQ(a.num_home_rows, b.num_home_rows);
    EXPECT_EQ(a.send_offsets, b.send_offsets);
    EXPECT_EQ(a.send_rows, b.send_rows);
    EXPECT_EQ(a.recv_offsets, b.recv_offsets);
    EXPECT_EQ(a.expert_offsets, b.expert_offsets);
    EXPECT_EQ(a.pair_rows, b.pair_rows);
    EXPECT_EQ(a.pair_weights, b.pair_weights);
  }
}

TEST(StepPlanTest, EqualArgumentsGiveEqualPlans) {
  for (const PlanCase& c : PlanCases()) {
    SCOPED_TRACE(c.name);
    ExpectEqual(PlanStep(c.routing, c.placement, c.home_offsets), PlanStep(c.routing, c.placement, c.home_offsets));
  }
}

TEST(StepPlanTest, HelpersDoNotChangeThePlan) {
  for (const int num_threads : {1, 2, 5}) {
    WorkPool helpers(num_threads);
    for (const PlanCase& c : PlanCases()) {
      SCOPED_TRACE(c.name);
      ExpectEqual(PlanStep(c.routing, c.placement, c.home_offsets, &helpers),
                  PlanStep(c.routing, c.placement, c.home_offsets));
    }
    for (const int num_ranks : {1, 3, 8}) {
      for (const int64_t num_rows : {1023, 1024, 5000, 20011}) {
        const Routing routing = RandomRouting(num_rows, 4, 37, static_cast<uint32_t>(num_rows));
        const Placement placement = RandomPlacement(37, num_ranks, 7);
        ExpectEqual(PlanStep(routing, placement, HomeOffsets(num_rows, num_ranks), &helpers),
                    PlanStep(routing, placement, HomeOffsets(num_rows, num_ranks)));
      }
    }
  }
}

TEST(StepPlanTest, SmallExampleByHand) {
  // Experts 0, 1 on rank 0 and 2, 3 on rank 1; rows 0, 1 at home on rank 0 and row 2 on rank 1.
  Routing routing;
  routing.Resize(3, 2);
  routing.expert_idx = {0, 1, 3, 0, 2, 3};
  routing.weight = {.1f, .2f, .3f, .4f, .5f, .6f};
  const StepPlan plan = PlanStep(routing, Placement::Even(4, 2), {0, 2, 3});
  EXPECT_EQ(plan.crossings, (std::vector<uint16_t>{0, 1, 0}));
  EXPECT_EQ(plan.ranks[0].send_offsets, (std::vector<int32_t>{0, 2, 3}));
  EXPECT_EQ(plan.ranks[0].send_rows, (std::vector<int32_t>{0, 1, 1}));
  EXPECT_EQ(plan.ranks[0].recv_offsets, (std::vector<int32_t>{0, 2, 2}));
  EXPECT_EQ(plan.ranks[0].expert_offsets, (std::vector<int32_t>{0, 2, 3}));
  EXPECT_EQ(plan.ranks[0].pair_rows, (std::vector<int32_t>{0, 1, 0}));
  EXPECT_EQ(plan.ranks[0].pair_weights, (std::vector<float>{.1f, .4f, .2f}));
  EXPECT_EQ(plan.ranks[1].recv_offsets, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(plan.ranks[1].expert_offsets, (std::vector<int32_t>{0, 1, 3}));
  EXPECT_EQ(plan.ranks[1].pair_rows, (std::vector<int32_t>{1, 0, 1}));
  EXPECT_EQ(plan.ranks[1].pair_weights, (std::vector<float>{.5f, .3f, .6f}));
}

TEST(HomeOffsetsTest, BlocksDifferByAtMostOneRow) {
  for (int64_t num_rows = 0; num_rows < 40; ++num_rows) {
    for (int num_ranks = 1; num_ranks <= 9; ++num_ranks) {
      const std::vector<int64_t> offsets = HomeOffsets(num_rows, num_ranks);
      EXPECT_EQ(offsets.front(), 0);
      EXPECT_EQ(offsets.back(), num_rows);
      for (int rank = 0; rank < num_ranks; ++rank) {
        const int64_t block = offsets[rank + 1] - offsets[rank];
        EXPECT_TRUE(block == num_rows / num_ranks || block == num_rows / num_ranks + 1);
      }
    }
  }
}

TEST(PlacementTest, EvenGivesConsecutiveExpertsToEachRank) {
  const Placement placement = Placement::Even(7, 3);
  EXPECT_EQ(placement.experts_of(0), (std::vector<int>{0, 1}));
  EXPECT_EQ(placement.experts_of(1), (std::vector<int>{2, 3}));
  EXPECT_EQ(placement.experts_of(2), (std::vector<int>{4, 5, 6}));
  EXPECT_EQ(Placement::Even(2, 4).num_ranks(), 4);
}

TEST(PlacementTest, SlotsFollowExpertOrder) {
  const Placement placement({2, 0, 2, 0}, 3);
  EXPECT_EQ(placement.experts_of(0), (std::vector<int>{1, 3}));
  EXPECT_TRUE(placement.experts_of(1).empty());
  EXPECT_EQ(placement.place(2, 0).rank, 2);
  EXPECT_EQ(placement.place(2, 0).slot, 1);
}

}  // namespace
}  // namespace switchyard
