// Capacity limits how many rows of one request may choose an expert. Rows beyond it lose that choice. Pure.
//
// Places are given to all first choices, then to all second choices, and so on; among equals in row order, or, by
// priority, to the rows with the largest best score first. Tutel (extract_critical, batch_prioritized_routing) and
// transformers' switch_transformers and nllb-moe do the same. Rows of other requests never count.
#pragma once

#include <cstdint>
#include <span>

#include "moe/gating/routing.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// Whether a request may lose choices at all. It cannot without a rule, nor with Tutel's factor 0, which makes room for
// all choices.
bool CanDropChoices(const CapacitySpec& capacity);

// The number of rows that one expert may have of a request of `num_rows` rows with top_k choices each among
// num_experts; `fullest` is the largest number of its rows that chose the same expert. Never negative.
int64_t CapacityOf(const CapacitySpec& capacity, int top_k, int num_experts, int64_t num_rows, int64_t fullest);

// Applies spec.capacity to one request, rows [first_row, first_row + num_rows) of `routing`. Only columns [0, top_k)
// are the gate's choices, and only they change: those beyond capacity get expert -1 and weight 0. With `renormalize`
// the other weights of such a row are divided by their sum, or by GateSpec::norm_min where that is larger, and
// multiplied by GateSpec::scale again. `best_score` [num_rows] holds ScoreStats::best_score of these rows; only
// by_priority reads it, and puts NaN last.
void ApplyCapacity(const GateSpec& spec, int top_k, int num_experts, int64_t first_row, int64_t num_rows,
                   std::span<const float> best_score, Routing* routing);

}  // namespace switchyard
