#include "moe/gating/score_stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace switchyard {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

ScoreStats Stats(Scoring scoring, const std::vector<float>& logits, int num_experts) {
  ScoreStats stats;
  const int64_t num_rows = logits.size() / num_experts;
  stats.Reset(num_rows, num_experts);
  AddScores(scoring, {logits.data(), num_rows, num_experts, num_experts}, stats.best_score.data(),
            stats.score_sum.data());
  return stats;
}

TEST(ScoreStats, MatchesTheDefinition) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  constexpr int kRows = 50, kExperts = 37;
  std::vector<float> logits(kRows * kExperts);
  for (float& logit : logits) logit = normal(random);
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSparseMixer}) {
    const ScoreStats stats = Stats(scoring, logits, kExperts);
    std::vector<double> expected_sum(kExperts);
    for (int i = 0; i < kRows; ++i) {
      std::vector<double> scores;
      double sum = 0.0;
      for (int e = 0; e < kExperts; ++e) {
        const double logit = logits[i * kExperts + e];
        scores.push_back(scoring == Scoring::kSigmoid ? 1 / (1 + std::exp(-logit)) : std::exp(logit));
        sum += scores.back();
      }
      const double best = *std::max_element(scores.begin(), scores.end());
      // A few fp32 roundings, one of them of a difference of logits up to 20.
      EXPECT_NEAR(stats.best_score[i], scoring == Scoring::kSigmoid ? best : best / sum, 1e-6);
      for (int e = 0; e < kExperts; ++e) expected_sum[e] += scores[e] / sum;
    }
    for (int e = 0; e < kExperts; ++e) EXPECT_NEAR(stats.score_sum[e], expected_sum[e], 3e-6 * expected_sum[e]);
  }
}

TEST(ScoreStats, RowsWithoutScoresAreNan) {
  const ScoreStats softmax = Stats(Scoring::kSoftmax, {0, NAN, 0, kInf, 0, -kInf}, 2);
  EXPECT_TRUE(std::isnan(softmax.best_score[0]));
  EXPECT_TRUE(std::isnan(softmax.best_score[1]));
  EXPECT_EQ(softmax.best_score[2], 1.0f);
  const ScoreStats sigmoid = Stats(Scoring::kSigmoid, {NAN, 0, 0, kInf, -kInf, -kInf}, 2);
  EXPECT_TRUE(std::isnan(sigmoid.best_score[0]));
  EXPECT_EQ(sigmoid.best_score[1], 1.0f);
  EXPECT_EQ(sigmoid.best_score[2], 0.0f);
}

// By hand: me = (1.5, 0.5), rows per first choice (2, 0), E = 2, T = 2: 2 / 4 · 1.5 · 2.
TEST(BalanceLoss, GshardByHand) {
  Routing routing;
  routing.Resize(3, 2);
  routing.expert_idx = {1, 0, 0, 1, 0, 1};
  const std::vector<double> sums = {1.5, 0.5};
  EXPECT_DOUBLE_EQ(BalanceLoss(routing, 1, 2, sums, 2), 1.5);
  routing.expert_idx[2] = -1;
  EXPECT_DOUBLE_EQ(BalanceLoss(routing, 1, 2, sums, 2), 0.75);
  EXPECT_EQ(BalanceLoss(routing, 1, 0, sums, 2), 0.0);
}

TEST(BalanceLoss, EvenSharesGiveOne) {
  Routing routing;
  routing.Resize(4, 1);
  routing.expert_idx = {2, 0, 3, 1};
  EXPECT_DOUBLE_EQ(BalanceLoss(routing, 0, 4, std::vector<double>(4, 1.0), 4), 1.0);
}

}  // namespace
}  // namespace switchyard
