#include "moe/gating/score_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/gating/fast_exp.h"

namespace switchyard {
namespace {

void SoftmaxRow(const float* logits, float largest, int num_experts, float* scores) {
  double sum = 0.0;
  for (int i = 0; i < num_experts; ++i) sum += scores[i] = ExpOrZero(logits[i] - largest);
  for (int i = 0; i < num_experts; ++i) scores[i] = static_cast<float>(scores[i] / sum);
}

// All scores are NaN when a logit is NaN, and when the largest is infinite and therefore has no softmax.
void ScoreRow(Scoring scoring, const float* logits, int num_experts, float* scores) {
  const float largest = *std::max_element(logits, logits + num_experts);
  const bool any_nan = std::any_of(logits, logits + num_experts, [](float logit) { return std::isnan(logit); });
  if (any_nan || (scoring != Scoring::kSigmoid && std::isinf(largest))) {
    std::fill_n(scores, num_experts, std::numeric_limits<float>::quiet_NaN());
  } else if (scoring == Scoring::kSigmoid) {
    for (int i = 0; i < num_experts; ++i) scores[i] = Sigmoid(logits[i]);
  } else {
    SoftmaxRow(logits, largest, num_experts, scores);
  }
}

// The number that a row's scores are divided by in sums over rows.
double ShareOut(Scoring scoring, const std::vector<float>& scores) {
  if (scoring != Scoring::kSigmoid) return 1.0;
  double sum = 0.0;
  for (float score : scores) sum += score;
  return sum > 0.0 ? sum : 1.0;
}

}  // namespace

void AddScores(Scoring scoring, const LogitRows& logits, float* best_score, double* score_sum) {
  const int num_experts = logits.num_experts;
  std::vector<float> scores(num_experts);
  for (int64_t row_idx = 0; row_idx < logits.num_rows; ++row_idx) {
    ScoreRow(scoring, logits.row(row_idx), num_experts, scores.data());
    best_score[row_idx] = *std::max_element(scores.begin(), scores.end());
    const double divisor = ShareOut(scoring, scores);
    for (int i = 0; i < num_experts; ++i) score_sum[i] += scores[i] / divisor;
  }
}

double BalanceLoss(const Routing& routing, int64_t first_row, int64_t num_rows, std::span<const double> score_sum,
                   int num_experts) {
  if (num_rows == 0) return 0.0;
  double total = 0.0;
  for (int64_t row_idx = first_row; row_idx < first_row + num_rows; ++row_idx) {
    const int32_t first_choice = routing.expert_idx[row_idx * routing.top_k];
    if (first_choice >= 0) total += score_sum[first_choice];
  }
  return total * num_experts / (static_cast<double>(num_rows) * num_rows);
}

}  // namespace switchyard
