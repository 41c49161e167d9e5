#include "moe/gating/capacity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

namespace switchyard {
namespace {

using Experts = std::vector<int32_t>;
using Weights = std::vector<float>;

Routing Make(int top_k, const Experts& experts, const Weights& weights) {
  Routing routing;
  routing.Resize(experts.size() / top_k, top_k);
  routing.expert_idx = experts;
  routing.weight = weights;
  return routing;
}

// switch_transformers: `expert_capacity` for any number of rows. nllb-moe: ceil(fraction · T).
TEST(CapacityOf, FixedAndFraction) {
  EXPECT_EQ(CapacityOf({}, 2, 8, 37, 30), 37);
  EXPECT_EQ(CapacityOf({.rule = CapacityRule::kFixed, .rows = 4}, 1, 8, 37, 30), 4);
  EXPECT_EQ(CapacityOf({.rule = CapacityRule::kFixed, .rows = -1}, 1, 8, 37, 30), 0);
  const CapacitySpec fraction{.rule = CapacityRule::kFraction, .factor = 0.3};
  EXPECT_EQ(CapacityOf(fraction, 2, 8, 37, 30), 12);  // 11.1
  EXPECT_EQ(CapacityOf(fraction, 2, 8, 10, 10), 3);
  EXPECT_EQ(CapacityOf(fraction, 2, 8, 1, 1), 1);
}

// By hand from Tutel's extract_critical: 37 rows over 8 experts are 5 each at most.
TEST(CapacityOf, Tutel) {
  const auto capacity = [](double factor, int top_k, int64_t fullest, int64_t alignment = 1) {
    return CapacityOf({.rule = CapacityRule::kTutel, .factor = factor, .alignment = alignment}, top_k, 8, 37, fullest);
  };
  EXPECT_EQ(capacity(1.0, 1, 30), 5);
  EXPECT_EQ(capacity(1.0, 2, 30), 10);
  EXPECT_EQ(capacity(1.3, 2, 30), 12);  // 2 · int(6.5), not int(13)
  EXPECT_EQ(capacity(0.1, 3, 30), 0);
  EXPECT_EQ(capacity(1.0, 2, 1), 10);  // although the experts need less
  EXPECT_EQ(capacity(1.0, 2, 30, 8), 16);
  EXPECT_EQ(capacity(1.0, 2, 30, 5), 10);
  EXPECT_EQ(capacity(0, 2, 30), 30);
  EXPECT_EQ(capacity(0, 2, 30, 8), 32);
  EXPECT_EQ(capacity(-1.0, 2, 30), 10);
  EXPECT_EQ(capacity(-1.0, 2, 7), 7);
  EXPECT_EQ(capacity(-1.5, 2, 30, 4), 16);  // 2 · int(7.5) = 14
  EXPECT_EQ(capacity(-1.5, 2, 9, 4), 12);
}

TEST(CapacityOf, AbsurdFactorsAreNoUndefinedBehaviour) {
  for (const CapacityRule rule : {CapacityRule::kFraction, CapacityRule::kTutel}) {
    for (const double factor : {1e300, -1e300, HUGE_VAL, -HUGE_VAL, std::nan("")}) {
      EXPECT_GE(CapacityOf({.rule = rule, .factor = factor}, 4, 8, 1 << 20, 1 << 20), 0);
    }
  }
}

TEST(ApplyCapacity, FirstChoicesComeBeforeSecondOnes) {
  // Expert 0: first choices of rows 1 and 2, then the second of row 0.
  Routing routing = Make(2, {1, 0, 0, 1, 0, 2}, {0.6f, 0.4f, 0.7f, 0.3f, 0.8f, 0.2f});
  ApplyCapacity({.top_k = 2, .capacity = {.rule = CapacityRule::kFixed, .rows = 2}}, 2, 3, 0, 3, {}, &routing);
  EXPECT_EQ(routing.expert_idx, (Experts{1, -1, 0, 1, 0, 2}));
  EXPECT_EQ(routing.weight, (Weights{0.6f, 0, 0.7f, 0.3f, 0.8f, 0.2f}));
}

TEST(ApplyCapacity, SecondChoicesStandBehindFirstChoicesOfLaterRows) {
  Routing routing = Make(2, {1, 0, 0, 1}, {0.6f, 0.4f, 0.7f, 0.3f});
  const GateSpec spec{.top_k = 2, .capacity = {.rule = CapacityRule::kFixed, .rows = 1, .renormalize = true}};
  ApplyCapacity(spec, 2, 2, 0, 2, {}, &routing);
  EXPECT_EQ(routing.expert_idx, (Experts{1, -1, 0, -1}));
  EXPECT_EQ(routing.weight, (Weights{1, 0, 1, 0}));
}

TEST(ApplyCapacity, PriorityGoesByBestScoreThenByRow) {
  const std::vector<float> best = {0.5f, std::nanf(""), 0.9f, 0.5f};
  const GateSpec spec{.capacity = {.rule = CapacityRule::kFixed, .rows = 2, .by_priority = true}};
  Routing routing = Make(1, {3, 3, 3, 3}, {0.5f, 0.5f, 0.9f, 0.5f});
  ApplyCapacity(spec, 1, 4, 0, 4, best, &routing);
  EXPECT_EQ(routing.expert_idx, (Experts{3, -1, 3, -1}));
}

TEST(ApplyCapacity, RenormalizedWeightsKeepTheScale) {
  Routing routing = Make(3, {0, 1, 2, 0, 1, 2}, {1.0f, 0.6f, 0.4f, 1.0f, 0.6f, 0.4f});
  const GateSpec spec{
      .top_k = 3, .scale = 2, .capacity = {.rule = CapacityRule::kFixed, .rows = 1, .renormalize = true}};
  routing.expert_idx[4] = 3;  // row 1 loses experts 0 and 2
  ApplyCapacity(spec, 3, 4, 0, 2, {}, &routing);
  EXPECT_EQ(routing.expert_idx, (Experts{0, 1, 2, -1, 3, -1}));
  EXPECT_EQ(routing.weight, (Weights{1.0f, 0.6f, 0.4f, 0, 2, 0}));
}

TEST(ApplyCapacity, ARowThatLosesAllHasNoWeight) {
  Routing routing = Make(1, {0, 0}, {0.3f, 0.4f});
  const GateSpec spec{.capacity = {.rule = CapacityRule::kTutel, .factor = 0.1, .renormalize = true}};
  ApplyCapacity(spec, 1, 4, 0, 2, {}, &routing);
  EXPECT_EQ(routing.expert_idx, (Experts{-1, -1}));
  EXPECT_EQ(routing.weight, (Weights{0, 0}));
}

// Checks against the definition: one choice after the other in sorted order, in fp64.
void ExpectSimulated(const GateSpec& spec, int num_experts, const Routing& before, int64_t first_row, int64_t num_rows,
                     const std::vector<float>& best, const Routing& after) {
  struct Claim {
    int choice;
    float priority;
    int64_t row;
    bool operator<(const Claim& other) const {
      return std::tuple(choice, -priority, row) < std::tuple(other.choice, -other.priority, other.row);
    }
  };
  const int stride = before.top_k;
  std::vector<Claim> claims;
  std::map<int32_t, int64_t> demand;
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int j = 0; j < spec.top_k; ++j) {
      claims.push_back({j, spec.capacity.by_priority ? best[i] : 0.0f, first_row + i});
      ++demand[before.expert_idx[(first_row + i) * stride + j]];
    }
  }
  int64_t fullest = 0;
  for (const auto& [expert, count] : demand) fullest = std::max(fullest, count);
  const int64_t capacity = CapacityOf(spec.capacity, spec.top_k, num_experts, num_rows, fullest);
  std::sort(claims.begin(), claims.end());
  std::map<int32_t, int64_t> taken;
  std::vector<bool> has_place(before.expert_idx.size());
  for (const Claim& claim : claims) {
    const int64_t at = claim.row * stride + claim.choice;
    if (taken[before.expert_idx[at]] >= capacity) continue;
    ++taken[before.expert_idx[at]];
    has_place[at] = true;
  }
  for (int64_t row = 0; row < before.num_rows; ++row) {
    const bool is_ours = row >= first_row && row < first_row + num_rows;
    double sum = 0.0;
    bool lost = false;
    for (int j = 0; is_ours && j < spec.top_k; ++j) {
      sum += has_place[row * stride + j] ? before.weight[row * stride + j] : 0.0f;
      lost |= !has_place[row * stride + j];
    }
    for (int j = 0; j < stride; ++j) {
      const int64_t at = row * stride + j;
      const bool stays = !is_ours || j >= spec.top_k || has_place[at];
      const bool rescaled = stays && lost && j < spec.top_k && spec.capacity.renormalize;
      ASSERT_EQ(after.expert_idx[at], stays ? before.expert_idx[at] : -1) << row << " " << j;
      // The tolerance allows one rounding to fp32.
      const double expected = !stays ? 0.0 : rescaled ? before.weight[at] / sum : before.weight[at];
      ASSERT_NEAR(after.weight[at], expected, 1e-7 * expected) << row << " " << j;
    }
  }
}

// Random choices and three shared columns. The rows before and after the request's belong to other requests.
Routing RandomRouting(int64_t num_rows, int top_k, int num_experts, std::mt19937* random) {
  std::uniform_real_distribution<float> uniform(0.01f, 1.0f);
  Routing routing;
  routing.Resize(num_rows, top_k + 3);
  std::vector<int32_t> experts(num_experts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t row = 0; row < num_rows; ++row) {
    std::shuffle(experts.begin(), experts.end(), *random);
    for (int j = 0; j < top_k + 3; ++j) {
      routing.expert_idx[row * (top_k + 3) + j] = j < top_k ? experts[j] : num_experts + j - top_k;
      routing.weight[row * (top_k + 3) + j] = uniform(*random);
    }
  }
  return routing;
}

TEST(ApplyCapacity, MatchesASimulationOfTheDefinition) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 400; ++trial) {
    const int num_experts = 1 + random() % 12, top_k = 1 + random() % num_experts;
    const int64_t first_row = random() % 4, num_rows = 1 + random() % 40;
    const CapacitySpec capacities[] = {
        {.rule = CapacityRule::kFixed, .rows = static_cast<int64_t>(random() % 12)},
        {.rule = CapacityRule::kFraction, .factor = 0.3},
        {.rule = CapacityRule::kTutel, .factor = 0.7},
        {.rule = CapacityRule::kTutel, .factor = -0.7, .alignment = 4},
        {.rule = CapacityRule::kTutel},
    };
    GateSpec spec{.top_k = top_k, .capacity = capacities[random() % 5]};
    spec.capacity.by_priority = random() % 2 == 0;
    spec.capacity.renormalize = random() % 2 == 0;
    const Routing before = RandomRouting(first_row + num_rows + 2, top_k, num_experts, &random);
    std::vector<float> best(num_rows);
    for (float& score : best) score = (random() % 8) / 8.0f;  // with ties
    Routing after = before;
    ApplyCapacity(spec, top_k, num_experts, first_row, num_rows, best, &after);
    ASSERT_NO_FATAL_FAILURE(ExpectSimulated(spec, num_experts, before, first_row, num_rows, best, after))
        << "trial " << trial;
  }
}

TEST(ApplyCapacity, WithoutARuleOrRowsNothingChanges) {
  std::mt19937 random(1);
  const Routing before = RandomRouting(5, 2, 3, &random);
  Routing after = before;
  ApplyCapacity({.top_k = 2}, 2, 3, 0, 5, {}, &after);
  ApplyCapacity({.top_k = 2, .capacity = {.rule = CapacityRule::kFixed}}, 2, 3, 5, 0, {}, &after);
  EXPECT_EQ(after.expert_idx, before.expert_idx);
  EXPECT_EQ(after.weight, before.weight);
}

}  // namespace
}  // namespace switchyard
