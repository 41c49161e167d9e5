// Scoring and selection: from a row's logits to its k experts and their weights, as GateSpec says. Pure.
//
// Experts that compete by their scores alone are ranked by logit, which orders them as the scores do but also tells
// apart scores that rounding makes equal. With a correction or groups they are ranked by the fp32 sum of score and
// correction.
//
// A row with a NaN logit gets k distinct experts and NaN weights, so that its output is NaN and every other row is
// untouched. A largest logit that is infinite has no softmax (inf - inf): the experts are still chosen by logit, the
// weights are NaN. A logit of -inf beside a finite one has weight 0. Experts of a row are always distinct and below E,
// also where groups leave fewer than k of them.
#pragma once

#include <cstdint>
#include <span>

#include "moe/gating/routing.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// Logits [T, E] in fp32, rows `stride` >= E floats apart; the floats between them are not read.
struct LogitRows {
  const float* data = nullptr;
  int64_t num_rows = 0;
  int num_experts = 0;
  int64_t stride = 0;

  const float* row(int64_t row_idx) const { return data + row_idx * stride; }
};

// Writes columns [0, spec.top_k) of rows [first_row, first_row + T) of `routing`, which must already be sized and have
// at least so many columns. 1 <= spec.top_k <= E. `score_correction` is [E] and finite, or empty.
// kSparseMixer draws any k the same way, each expert among those not drawn before it.
void SelectExperts(const GateSpec& spec, std::span<const float> score_correction, const LogitRows& logits,
                   int64_t first_row, Routing* routing);

}  // namespace switchyard
