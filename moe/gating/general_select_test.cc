// Checks every formula of GateSpec against its definition in fp64, written apart from the code under test.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "moe/gating/select_experts.h"

namespace switchyard {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

Routing Select(const GateSpec& gate, const std::vector<float>& correction, const std::vector<float>& logits,
               int num_experts) {
  Routing routing;
  routing.Resize(logits.size() / num_experts, gate.top_k);
  SelectExperts(gate, correction, {logits.data(), routing.num_rows, num_experts, num_experts}, 0, &routing);
  return routing;
}

std::vector<float> Random(int64_t size, double deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, static_cast<float>(deviation));
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

// ---- The definition -------------------------------------------------------------------------------------------------

struct Reference {
  std::vector<int> order;                 // all experts, best choice first
  std::vector<double> choices;            // [E]
  std::vector<double> weights;            // [k]
  double narrowest_group_gap = HUGE_VAL;  // between the last group kept and the first left out
};

std::vector<double> Scores(Scoring scoring, const std::vector<double>& logits) {
  std::vector<double> scores;
  if (scoring == Scoring::kSigmoid) {
    for (double logit : logits) scores.push_back(1 / (1 + std::exp(-logit)));
    return scores;
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (double logit : logits) sum += std::exp(logit - largest);
  for (double logit : logits) scores.push_back(std::exp(logit - largest) / sum);
  return scores;
}

std::vector<int> Sorted(const std::vector<double>& values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
  return order;
}

void LeaveGroupsOut(const GateSpec& gate, Reference* reference) {
  const int size = static_cast<int>(reference->choices.size()) / gate.num_groups;
  std::vector<double> group_scores;
  for (int g = 0; g < gate.num_groups; ++g) {
    std::vector<double> group(&reference->choices[g * size], &reference->choices[g * size] + size);
    std::sort(group.rbegin(), group.rend());
    group_scores.push_back(gate.group_score == GroupScore::kTop2Sum && size > 1 ? group[0] + group[1] : group[0]);
  }
  const std::vector<int> order = Sorted(group_scores);
  for (int i = gate.groups_kept; i < gate.num_groups; ++i) {
    for (int e = 0; e < size; ++e) reference->choices[order[i] * size + e] = gate.excluded_score;
  }
  reference->narrowest_group_gap = group_scores[order[gate.groups_kept - 1]] - group_scores[order[gate.groups_kept]];
}

void Normalize(const GateSpec& gate, std::vector<double>* weights) {
  double divisor = 1.0;
  if (gate.top_k > 1 || gate.normalizes_single) {
    if (gate.normalization == Normalization::kSum) {
      divisor = std::max(std::accumulate(weights->begin(), weights->end(), gate.norm_epsilon), gate.norm_min);
    } else if (gate.normalization == Normalization::kPNorm) {
      double sum = 0.0;
      for (double weight : *weights) sum += std::pow(weight, gate.norm_order);
      divisor = std::pow(sum, 1 / gate.norm_order);
    }
  }
  for (double& weight : *weights) weight *= gate.scale / divisor;
}

Reference Define(const GateSpec& gate, const std::vector<float>& correction, const float* row, int num_experts) {
  const std::vector<double> logits(row, row + num_experts), scores = Scores(gate.scoring, logits);
  Reference reference{.choices = scores};
  for (size_t e = 0; e < correction.size(); ++e) reference.choices[e] += correction[e];
  if (gate.groups_kept < gate.num_groups) LeaveGroupsOut(gate, &reference);
  reference.order = Sorted(reference.choices);
  for (int j = 0; j < gate.top_k; ++j) reference.weights.push_back(scores[reference.order[j]]);
  Normalize(gate, &reference.weights);
  return reference;
}

// Whether fp32 may decide otherwise than fp64, because two neighbouring choices are within reach of its rounding.
bool IsClose(const Reference& reference, int top_k) {
  const int last = std::min<int>(top_k, static_cast<int>(reference.order.size()) - 1);
  for (int j = 0; j < last; ++j) {
    const double gap = reference.choices[reference.order[j]] - reference.choices[reference.order[j + 1]];
    if (gap > 0 && gap < 1e-6) return true;
  }
  return reference.narrowest_group_gap < 1e-6;
}

// Returns how many rows were compared.
int ExpectDefined(const GateSpec& gate, const std::vector<float>& correction, const std::vector<float>& logits,
                  int num_experts) {
  const Routing routing = Select(gate, correction, logits, num_experts);
  int num_compared = 0;
  for (int64_t i = 0; i < routing.num_rows; ++i) {
    const Reference reference = Define(gate, correction, &logits[i * num_experts], num_experts);
    if (IsClose(reference, gate.top_k)) continue;
    ++num_compared;
    for (int j = 0; j < gate.top_k; ++j) {
      EXPECT_EQ(routing.expert_idx[i * gate.top_k + j], reference.order[j]) << "row " << i << " choice " << j;
      // Roundings of a difference of logits, an exponential and a sum: a few 1e-7 each.
      EXPECT_NEAR(routing.weight[i * gate.top_k + j], reference.weights[j], 3e-6 * std::fabs(reference.weights[j]))
          << "row " << i << " choice " << j;
    }
    if (testing::Test::HasFailure()) return num_compared;
  }
  return num_compared;
}

// ---- Tests ----------------------------------------------------------------------------------------------------------

constexpr int kRows = 40;

TEST(GeneralSelect, SigmoidAndCorrection) {
  for (const int num_experts : {1, 2, 7, 16, 17, 60, 128, 256, 512}) {
    for (const int top_k : {1, 2, 6, 8, 17, num_experts}) {
      if (top_k > num_experts) continue;
      for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
        for (const double deviation : {0.0, 0.1, 1.0}) {  // 0: no correction
          SCOPED_TRACE(testing::Message() << num_experts << " experts, top " << top_k << ", scoring "
                                          << static_cast<int>(scoring) << ", correction " << deviation);
          const GateSpec gate{.scoring = scoring, .top_k = top_k, .scale = 1.5};
          const std::vector<float> correction = Random(deviation == 0 ? 0 : num_experts, deviation, 7);
          ExpectDefined(gate, correction, Random(kRows * num_experts, 2.0, num_experts + top_k), num_experts);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(GeneralSelect, EveryNormalization) {
  int num_compared = 0;
  for (const int top_k : {1, 2, 6}) {
    for (const bool single : {false, true}) {
      for (const double scale : {1.0, 2.5}) {
        const GateSpec gates[] = {
            {.normalization = Normalization::kSum},
            {.normalization = Normalization::kSum, .norm_epsilon = 1e-20},
            {.normalization = Normalization::kSum, .norm_epsilon = 0.25},
            {.normalization = Normalization::kSum, .norm_min = 0.6},
            {.normalization = Normalization::kPNorm, .norm_order = 1},
            {.normalization = Normalization::kPNorm, .norm_order = 2},
            {.normalization = Normalization::kPNorm, .norm_order = 3.5},
        };
        for (GateSpec gate : gates) {
          gate.top_k = top_k;
          gate.normalizes_single = single;
          gate.scale = scale;
          for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
            gate.scoring = scoring;
            num_compared += ExpectDefined(gate, {}, Random(kRows * 32, 2.0, 11), 32);
            num_compared += ExpectDefined(gate, Random(32, 0.2, 3), Random(kRows * 32, 2.0, 12), 32);
          }
        }
      }
    }
  }
  EXPECT_GT(num_compared, 0.99 * 3 * 2 * 2 * 7 * 2 * 2 * kRows);
}

TEST(GeneralSelect, InfiniteOrderIsTheLargestWeight) {
  const GateSpec gate{.top_k = 2, .normalization = Normalization::kPNorm, .norm_order = HUGE_VAL};
  const Routing routing = Select(gate, {}, {0, std::log(2.0f), std::log(8.0f)}, 3);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{2, 1}));
  EXPECT_FLOAT_EQ(routing.weight[0], 1.0f);
  EXPECT_FLOAT_EQ(routing.weight[1], 0.25f);
}

TEST(GeneralSelect, EveryGroupRule) {
  int num_compared = 0, num_rows = 0;
  for (const auto& [num_experts, num_groups] :
       std::vector<std::pair<int, int>>{{256, 8}, {160, 8}, {16, 4}, {6, 3}, {4, 4}, {512, 16}}) {
    for (const int kept : {1, 2, num_groups - 1}) {
      for (const GroupScore group_score : {GroupScore::kMax, GroupScore::kTop2Sum}) {
        for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
          for (const float excluded : {0.0f, -kInf}) {
            for (const bool corrected : {false, true}) {
              const GateSpec gate{.scoring = scoring,
                                  .top_k = std::min(8, kept * num_experts / num_groups),
                                  .num_groups = num_groups,
                                  .groups_kept = kept,
                                  .group_score = group_score,
                                  .excluded_score = excluded,
                                  .normalization = Normalization::kSum,
                                  .norm_epsilon = 1e-20};
              SCOPED_TRACE(testing::Message() << num_experts << " experts in " << kept << " of " << num_groups);
              const std::vector<float> correction = Random(corrected ? num_experts : 0, 0.3, 5);
              num_compared +=
                  ExpectDefined(gate, correction, Random(kRows * num_experts, 1.5, num_experts), num_experts);
              num_rows += kRows;
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(num_compared, 0.98 * num_rows);
}

// DeepSeek-V3 by hand. Logits of 0 have scores of 0.5. With the correction the choices are {0.5, 0.6} in group 0, {0.9,
// 0.0} in group 1 and {0.5, 0.5} in group 2. The sums are 1.1, 0.9 and 1.0, so groups 0 and 2 stay, and expert 2 loses
// in spite of its 0.9.
TEST(GeneralSelect, GroupsBySumOfTwoByHand) {
  const GateSpec gate{.scoring = Scoring::kSigmoid,
                      .top_k = 3,
                      .num_groups = 3,
                      .groups_kept = 2,
                      .group_score = GroupScore::kTop2Sum,
                      .excluded_score = 0.0f,
                      .normalization = Normalization::kSum,
                      .scale = 3};
  const Routing routing = Select(gate, {0, 0.1f, 0.4f, -0.5f, 0, 0}, std::vector<float>(6, 0.0f), 6);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{1, 0, 4}));
  for (const float weight : routing.weight) EXPECT_FLOAT_EQ(weight, 1.0f);
}

// Choices below the excluded score lose against it.
TEST(GeneralSelect, ExcludedZeroBeatsNegativeChoices) {
  const GateSpec gate{
      .scoring = Scoring::kSigmoid, .top_k = 2, .num_groups = 2, .groups_kept = 1, .excluded_score = 0.0f};
  const Routing routing = Select(gate, {-0.6f, -0.7f, -0.8f, -0.9f}, std::vector<float>(4, 0.0f), 4);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{2, 3}));
}

TEST(GeneralSelect, TooFewExpertsInTheGroupsKeptAreFilledUpDistinctly) {
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
    for (const int num_experts : {4, 24, 64, 256}) {
      for (const int top_k : {3, 12, num_experts}) {
        if (top_k > num_experts) continue;
        const GateSpec gate{.scoring = scoring, .top_k = top_k, .num_groups = num_experts / 2, .groups_kept = 1};
        const Routing routing = Select(gate, {}, Random(kRows * num_experts, 1.0, 3), num_experts);
        for (int64_t i = 0; i < kRows; ++i) {
          const int32_t* experts = &routing.expert_idx[i * top_k];
          const std::set<int32_t> distinct(experts, experts + top_k);
          EXPECT_EQ(static_cast<int>(distinct.size()), top_k);
          EXPECT_GE(*distinct.begin(), 0);
          EXPECT_LT(*distinct.rbegin(), num_experts);
          EXPECT_EQ(experts[0] / 2, experts[1] / 2);  // the group kept
          EXPECT_TRUE(std::is_sorted(experts + 2, experts + top_k));
        }
      }
    }
  }
}

TEST(GeneralSelect, TiesGoToTheLowerIndex) {
  const GateSpec corrected{.scoring = Scoring::kSigmoid, .top_k = 3};
  EXPECT_EQ(Select(corrected, std::vector<float>(4, 0.25f), {1, 2, 1, 2}, 4).expert_idx,
            (std::vector<int32_t>{1, 3, 0}));
  const GateSpec groups{.scoring = Scoring::kSigmoid, .top_k = 2, .num_groups = 3, .groups_kept = 1};
  EXPECT_EQ(Select(groups, {}, std::vector<float>(6, 1.0f), 6).expert_idx, (std::vector<int32_t>{0, 1}));
}

// Sigmoids that fp32 rounds to 1 are told apart by their logits.
TEST(GeneralSelect, SaturatedSigmoidsStayInTheOrderOfLogits) {
  const Routing routing = Select({.scoring = Scoring::kSigmoid, .top_k = 3}, {}, {30, 50, 40, -200}, 4);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{1, 2, 0}));
  EXPECT_EQ(routing.weight, (std::vector<float>{1, 1, 1}));
}

TEST(GeneralSelect, ANanRowGetsDistinctExpertsAndNanWeightsAlone) {
  const GateSpec gates[] = {{.scoring = Scoring::kSigmoid, .top_k = 2},
                            {.scoring = Scoring::kSoftmax, .top_k = 2, .num_groups = 4, .groups_kept = 2},
                            {.scoring = Scoring::kSparseMixer, .top_k = 2, .jitter = 0.01}};
  for (const GateSpec& gate : gates) {
    std::vector<float> logits = Random(3 * 20, 1.0, 9);
    const Routing before = Select(gate, {}, logits, 20);
    logits[20 + 13] = std::nanf("");
    const Routing after = Select(gate, {}, logits, 20);
    for (int j = 0; j < 6; ++j) {
      if (j / 2 == 1) {
        EXPECT_EQ(after.expert_idx[j], j % 2);
        EXPECT_TRUE(std::isnan(after.weight[j]));
      } else {
        EXPECT_EQ(after.expert_idx[j], before.expert_idx[j]);
        EXPECT_EQ(after.weight[j], before.weight[j]);
      }
    }
  }
}

TEST(GeneralSelect, InfiniteLogits) {
  const Routing sigmoid = Select({.scoring = Scoring::kSigmoid, .top_k = 3}, {}, {0, kInf, -kInf, -1}, 4);
  EXPECT_EQ(sigmoid.expert_idx, (std::vector<int32_t>{1, 0, 3}));
  EXPECT_EQ(sigmoid.weight[0], 1.0f);
  EXPECT_EQ(sigmoid.weight[1], 0.5f);
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSparseMixer}) {
    // A floor under the sum keeps softmax off the plain path.
    const GateSpec gate{.scoring = scoring, .top_k = 2, .normalization = Normalization::kSum, .norm_min = 1};
    const Routing high = Select(gate, {}, {0, kInf, 5, 1}, 4), low = Select(gate, {}, std::vector<float>(4, -kInf), 4);
    EXPECT_EQ(high.expert_idx, (std::vector<int32_t>{1, 2}));
    EXPECT_EQ(low.expert_idx, (std::vector<int32_t>{0, 1}));
    for (const float weight : high.weight) EXPECT_TRUE(std::isnan(weight));
    for (const float weight : low.weight) EXPECT_TRUE(std::isnan(weight));
  }
}

// ---- Sparsemixer ----------------------------------------------------------------------------------------------------

// phimoe's formula: an expert drawn is masked with -inf for the next draw, while the distance of every expert is
// measured from its own logit.
void ExpectSparselyMixed(const std::vector<float>& row, double jitter, int top_k, const int32_t* experts,
                         const float* weights) {
  std::vector<double> masked(row.begin(), row.end());
  for (int j = 0; j < top_k; ++j) {
    const int best = static_cast<int>(std::max_element(masked.begin(), masked.end()) - masked.begin());
    double sum = 0.0;
    for (size_t e = 0; e < row.size(); ++e) {
      const double distance = (masked[best] - row[e]) / std::max<double>(std::fabs(row[e]), masked[best]);
      if (std::isinf(masked[e]) || distance > 2 * jitter) continue;
      sum += std::exp(masked[e] - masked[best]);
    }
    ASSERT_EQ(experts[j], best);
    ASSERT_NEAR(weights[j], 1 / sum, 2e-6) << "draw " << j;
    masked[best] = -HUGE_VAL;
  }
}

TEST(GeneralSelect, SparseMixerMatchesPhimoesFormula) {
  int num_between = 0;
  for (const int num_experts : {2, 3, 16, 40}) {
    for (const double deviation : {0.01, 1.0, 20.0}) {
      for (const double jitter : {0.01, 0.1, 0.45}) {
        for (const int top_k : {1, 2}) {
          const GateSpec gate{.scoring = Scoring::kSparseMixer, .top_k = top_k, .jitter = jitter};
          const std::vector<float> logits = Random(kRows * num_experts, deviation, num_experts);
          const Routing routing = Select(gate, {}, logits, num_experts);
          for (int64_t i = 0; i < kRows; ++i) {
            const std::vector<float> row(&logits[i * num_experts], &logits[i * num_experts] + num_experts);
            const float* weights = &routing.weight[i * top_k];
            ASSERT_NO_FATAL_FAILURE(ExpectSparselyMixed(row, jitter, top_k, &routing.expert_idx[i * top_k], weights));
            num_between += weights[0] < 0.999f ? 1 : 0;
          }
        }
      }
    }
  }
  EXPECT_GT(num_between, 500);  // softmaxes of more than one expert
}

// By hand with jitter 0.25, threshold 0.5: of {4, 3, 1} expert 1 is 1/4 from the best, expert 2 is 3/4. Then of {3, 1}
// expert 2 is 2/3 from the best, so that expert 1 stands alone.
TEST(GeneralSelect, SparseMixerByHand) {
  const Routing routing = Select({.scoring = Scoring::kSparseMixer, .top_k = 2, .jitter = 0.25}, {}, {4, 3, 1}, 3);
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{0, 1}));
  EXPECT_FLOAT_EQ(routing.weight[0], 1 / (1 + std::exp(-1.0f)));
  EXPECT_FLOAT_EQ(routing.weight[1], 1.0f);
}

TEST(GeneralSelect, SparseMixerWithNegativeAndZeroLogits) {
  // All logits are 0, and a distance of 0/0 is not far.
  const Routing zeros = Select({.scoring = Scoring::kSparseMixer, .top_k = 2, .jitter = 0.01}, {}, {0, 0, 0}, 3);
  EXPECT_FLOAT_EQ(zeros.weight[0], 1.0f / 3);
  EXPECT_FLOAT_EQ(zeros.weight[1], 0.5f);
  // Below 0 the distance is relative to |s|: 1/3 for the second.
  const Routing negative = Select({.scoring = Scoring::kSparseMixer, .top_k = 2, .jitter = 0.2}, {}, {-3, -2, -9}, 3);
  EXPECT_EQ(negative.expert_idx, (std::vector<int32_t>{1, 0}));
  EXPECT_FLOAT_EQ(negative.weight[0], 1 / (1 + std::exp(-1.0f)));
  EXPECT_FLOAT_EQ(negative.weight[1], 1.0f);
}

}  // namespace
}  // namespace switchyard
