// What capacity by priority and the balance loss need to know of all scores of a row, not only of the chosen. Pure.
//
// Scores are those before correction, groups and normalisation, p[t, e]:
//   softmax, sparsemixer   the softmax of the logits
//   sigmoid                the sigmoids; in sums over rows divided by their row's sum, so that they share out 1 as a
//                          softmax does (DeepSeek-V3's balance loss)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/gating/routing.h"
#include "moe/gating/select_experts.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// Filled by Gate::Route for the rows that it routes. Rows of several requests need one each where sums are wanted.
struct ScoreStats {
  std::vector<float> best_score;  // [rows of the routing]: the largest score of a row; NaN where a logit is
  std::vector<double> score_sum;  // [E]: sums over rows, added to what is there

  void Reset(int64_t num_rows, int num_experts) {
    best_score.assign(num_rows, 0);
    score_sum.assign(num_experts, 0);
  }
};

// Writes best_score [T] and adds to score_sum [E].
void AddScores(Scoring scoring, const LogitRows& logits, float* best_score, double* score_sum);

// The auxiliary loss in GShard's form, as Tutel's gshard_loss: E / T² · sum over e of score_sum_e · (rows whose first
// choice is e); 1 when all is even. Of rows [first_row, first_row + num_rows) before capacity: a first choice that was
// taken away counts for no expert. 0 without rows.
double BalanceLoss(const Routing& routing, int64_t first_row, int64_t num_rows, std::span<const double> score_sum,
                   int num_experts);

}  // namespace switchyard
