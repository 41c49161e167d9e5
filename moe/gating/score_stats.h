// Statistics of all scores of a row, not only the chosen experts', for capacity by priority and the balance loss. Pure.
//
// Scores are those before correction, groups and normalisation, p[t, e]:
//   softmax, sparsemixer   the softmax of the logits
//   sigmoid                the sigmoids; in sums over rows each is divided by its row's sum, so that a row adds up to 1
//                          as with a softmax (DeepSeek-V3's balance loss)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/gating/routing.h"
#include "moe/gating/select_experts.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// Filled by Gate::Route for the rows that it routes. When sums are wanted, every request needs one of its own.
struct ScoreStats {
  std::vector<float> best_score;  // [rows of the routing]: the largest score of a row; NaN when it has no scores
  std::vector<double> score_sum;  // [E]: sums over rows, added to the values already there

  void Reset(int64_t num_rows, int num_experts) {
    best_score.assign(num_rows, 0);
    score_sum.assign(num_experts, 0);
  }
};

// Writes best_score [T] and adds to score_sum [E].
void AddScores(Scoring scoring, const LogitRows& logits, float* best_score, double* score_sum);

// The auxiliary loss in GShard's form, as Tutel's gshard_loss: E / T² · sum over e of score_sum_e · (rows whose first
// choice is e); 1 when all is even, 0 without rows. Computed for rows [first_row, first_row + num_rows), before
// capacity is applied, because a first choice that was taken away counts for no expert.
double BalanceLoss(const Routing& routing, int64_t first_row, int64_t num_rows, std::span<const double> score_sum,
                   int num_experts);

}  // namespace switchyard
