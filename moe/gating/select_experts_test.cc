#include "moe/gating/select_experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace switchyard {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Routing Select(const GateSpec& gate, const std::vector<float>& logits, int num_experts) {
  Routing routing;
  routing.Resize(logits.size() / num_experts, gate.top_k);
  SelectExperts(gate, {}, {logits.data(), routing.num_rows, num_experts, num_experts}, 0, &routing);
  return routing;
}

std::vector<float> RandomLogits(int64_t num_rows, int num_experts, double deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, static_cast<float>(deviation));
  std::vector<float> logits(num_rows * num_experts);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// The definition in fp64 for one row: stable order by logit, softmax over all, perhaps divided by the sum of the
// chosen.
void ExpectRow(const GateSpec& gate, const float* logits, int num_experts, const int32_t* experts,
               const float* weights) {
  std::vector<int> order(num_experts);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  double sum = 0.0;
  const bool is_single = gate.top_k == 1 && !gate.normalizes_single;
  const int num_summed = gate.normalization == Normalization::kSum && !is_single ? gate.top_k : num_experts;
  for (int i = 0; i < num_summed; ++i) sum += std::exp(double{logits[order[i]]} - logits[order[0]]);
  for (int j = 0; j < gate.top_k; ++j) {
    ASSERT_EQ(experts[j], order[j]) << "choice " << j;
    const double below_largest = double{logits[order[0]]} - logits[order[j]];
    const double expected = std::exp(-below_largest) / sum * gate.scale;
    // The difference is rounded to fp32 before its exponential is taken.
    const double relative = 1e-6 + below_largest * 0x1p-24;
    ASSERT_NEAR(weights[j], expected, relative * expected + 1e-37) << "choice " << j;
  }
}

TEST(SelectExperts, MatchesTheDefinitionForManyShapes) {
  for (const int num_experts : {1, 2, 7, 8, 15, 16, 17, 60, 64, 128, 130, 512}) {
    for (const int top_k : {1, 2, 8, num_experts}) {
      if (top_k > num_experts) continue;
      for (const bool renormalize : {false, true}) {
        SCOPED_TRACE(testing::Message() << num_experts << " experts, top " << top_k << ", renormalize " << renormalize);
        const GateSpec gate{.top_k = top_k, .normalization = renormalize ? Normalization::kSum : Normalization::kNone};
        const std::vector<float> logits = RandomLogits(20, num_experts, 3.0, num_experts * 100 + top_k);
        const Routing routing = Select(gate, logits, num_experts);
        for (int64_t row_idx = 0; row_idx < 20; ++row_idx) {
          ExpectRow(gate, &logits[row_idx * num_experts], num_experts, &routing.expert_idx[row_idx * top_k],
                    &routing.weight[row_idx * top_k]);
        }
      }
    }
  }
}

TEST(SelectExperts, MatchesTheDefinitionForExtremeLogits) {
  for (const double deviation : {1e-30, 1e-3, 50.0, 1e4, 1e37}) {
    for (const bool renormalize : {false, true}) {
      const GateSpec gate{.top_k = 4, .normalization = renormalize ? Normalization::kSum : Normalization::kNone};
      const std::vector<float> logits = RandomLogits(50, 24, deviation, 77);
      const Routing routing = Select(gate, logits, 24);
      for (int64_t row_idx = 0; row_idx < 50; ++row_idx) {
        ExpectRow(gate, &logits[row_idx * 24], 24, &routing.expert_idx[row_idx * 4], &routing.weight[row_idx * 4]);
      }
    }
  }
}

// Tutel's floor under the sum and a tiny addend change no softmax sum; a single weight may stay what it is.
TEST(SelectExperts, MatchesTheDefinitionWithScaleAndHarmlessBounds) {
  for (const int top_k : {1, 2, 8}) {
    for (const bool normalizes_single : {false, true}) {
      const GateSpec gate{.top_k = top_k,
                          .normalization = Normalization::kSum,
                          .normalizes_single = normalizes_single,
                          .norm_epsilon = 1e-20,
                          .norm_min = 1.1920929e-7,
                          .scale = 2.5};
      const std::vector<float> logits = RandomLogits(20, 64, 3.0, top_k);
      const Routing routing = Select(gate, logits, 64);
      for (int64_t row_idx = 0; row_idx < 20; ++row_idx) {
        ExpectRow(gate, &logits[row_idx * 64], 64, &routing.expert_idx[row_idx * top_k],
                  &routing.weight[row_idx * top_k]);
      }
    }
  }
}

TEST(SelectExperts, ExpertsAreDistinctOrderedAndWeightsSumToOne) {
  const GateSpec gate{.top_k = 8, .normalization = Normalization::kSum};
  const std::vector<float> logits = RandomLogits(2000, 128, 1.0, 5);
  const Routing routing = Select(gate, logits, 128);
  for (int64_t row_idx = 0; row_idx < 2000; ++row_idx) {
    const int32_t* experts = &routing.expert_idx[row_idx * 8];
    const float* weights = &routing.weight[row_idx * 8];
    EXPECT_EQ(std::set<int32_t>(experts, experts + 8).size(), 8);
    EXPECT_TRUE(std::is_sorted(weights, weights + 8, std::greater<>()));
    EXPECT_NEAR(std::accumulate(weights, weights + 8, 0.0), 1.0, 1e-6);
  }
}

TEST(SelectExperts, TiesGoToTheLowerIndex) {
  const GateSpec gate{.top_k = 3, .normalization = Normalization::kSum};
  const Routing routing = Select(gate, {1, 5, 0, 5, 1, 5, 1, 2, /**/ 0.0f, -0.0f, 0.0f, -0.0f, -1, -1, -1, -1}, 8);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{1, 3, 5, 0, 1, 2}));
  for (const float weight : routing.weight) EXPECT_FLOAT_EQ(weight, 1.0f / 3);
}

// Ties within a register's lanes and across registers, so many that there are more candidates than k.
TEST(SelectExperts, MatchesTheDefinitionWithManyTies) {
  for (const int num_experts : {16, 17, 60, 128, 256}) {
    for (const int top_k : {1, 5, 8, 16}) {
      const GateSpec gate{.top_k = top_k, .normalization = Normalization::kSum};
      std::vector<float> logits = RandomLogits(200, num_experts, 1.5, num_experts + top_k);
      for (float& logit : logits) logit = std::round(logit);
      const Routing routing = Select(gate, logits, num_experts);
      for (int64_t row_idx = 0; row_idx < 200; ++row_idx) {
        ExpectRow(gate, &logits[row_idx * num_experts], num_experts, &routing.expert_idx[row_idx * top_k],
                  &routing.weight[row_idx * top_k]);
      }
    }
  }
}

TEST(SelectExperts, AllEqualLogitsGiveUniformWeights) {
  const Routing routing = Select({.top_k = 4}, std::vector<float>(16, 3.5f), 16);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{0, 1, 2, 3}));
  for (const float weight : routing.weight) EXPECT_FLOAT_EQ(weight, 1.0f / 16);
}

TEST(SelectExperts, ANanRowGetsDistinctExpertsAndNanWeightsAlone) {
  for (const bool renormalize : {false, true}) {
    for (int bad = 0; bad < 20; ++bad) {
      std::vector<float> logits = RandomLogits(3, 20, 1.0, 9);
      const Routing before =
          Select({.top_k = 5, .normalization = renormalize ? Normalization::kSum : Normalization::kNone}, logits, 20);
      logits[20 + bad] = bad % 2 == 0 ? kNan : -kNan;
      const Routing after =
          Select({.top_k = 5, .normalization = renormalize ? Normalization::kSum : Normalization::kNone}, logits, 20);
      EXPECT_EQ(std::set<int32_t>(&after.expert_idx[5], &after.expert_idx[10]).size(), 5);
      for (int j = 0; j < 15; ++j) {
        EXPECT_GE(after.expert_idx[j], 0);
        EXPECT_LT(after.expert_idx[j], 20);
        if (j / 5 == 1) {
          EXPECT_TRUE(std::isnan(after.weight[j]));
        } else {
          EXPECT_EQ(after.weight[j], before.weight[j]);
          EXPECT_EQ(after.expert_idx[j], before.expert_idx[j]);
        }
      }
    }
  }
}

TEST(SelectExperts, NegativeInfinityHasNoWeight) {
  for (const bool renormalize : {false, true}) {
    const Routing routing =
        Select({.top_k = 3, .normalization = renormalize ? Normalization::kSum : Normalization::kNone},
               {-kInf, 1, -kInf, 1, -kInf}, 5);
    EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{1, 3, 0}));
    EXPECT_EQ(routing.weight, (std::vector<float>{0.5f, 0.5f, 0.0f}));
  }
}

TEST(SelectExperts, NoFiniteMaximumMeansNanWeightsInOrder) {
  for (const bool renormalize : {false, true}) {
    const GateSpec gate{.top_k = 2, .normalization = renormalize ? Normalization::kSum : Normalization::kNone};
    const Routing high = Select(gate, {0, kInf, 5, 1}, 4), low = Select(gate, {-kInf, -kInf, -kInf, -kInf}, 4);
    EXPECT_EQ(high.expert_idx, (std::vector<int32_t>{1, 2}));
    EXPECT_EQ(low.expert_idx, (std::vector<int32_t>{0, 1}));
    for (const float weight : high.weight) EXPECT_TRUE(std::isnan(weight));
    for (const float weight : low.weight) EXPECT_TRUE(std::isnan(weight));
  }
}

TEST(SelectExperts, LeavesWhatLiesBetweenLogitsAndBehindChoices) {
  Routing routing;
  routing.Resize(2, 3);
  std::fill(routing.expert_idx.begin(), routing.expert_idx.end(), -7);
  std::fill(routing.weight.begin(), routing.weight.end(), -7.0f);
  const std::vector<float> logits = {1, 2, 1, 99, 4, 3, 4, 99};
  SelectExperts({.top_k = 2, .normalization = Normalization::kSum}, {}, {logits.data(), 2, 3, 4}, 0, &routing);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{1, 0, -7, 0, 2, -7}));
  EXPECT_FLOAT_EQ(routing.weight[4], 0.5f);
  EXPECT_EQ(routing.weight[2], -7.0f);
  EXPECT_EQ(routing.weight[5], -7.0f);
}

TEST(SelectExperts, WritesOnlyItsOwnRows) {
  Routing routing;
  routing.Resize(5, 2);
  std::fill(routing.expert_idx.begin(), routing.expert_idx.end(), -7);
  std::fill(routing.weight.begin(), routing.weight.end(), -7.0f);
  const std::vector<float> logits = RandomLogits(2, 4, 1.0, 1);
  SelectExperts({.top_k = 2}, {}, {logits.data(), 2, 4, 4}, 2, &routing);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(routing.expert_idx[i] == -7, i / 2 < 2 || i / 2 > 3) << i;
    EXPECT_EQ(routing.weight[i] == -7.0f, i / 2 < 2 || i / 2 > 3) << i;
  }
}

}  // namespace
}  // namespace switchyard
