// A RankPlan as bytes, for the link to a worker. The layout is specified in docs/link.md: a fixed header of
// little-endian int32 counts, then the arrays one after another, each 4-byte aligned. The reader trusts nothing.
#pragma once

#include <cstddef>
#include <span>

#include "base/status.h"
#include "moe/plan/step_plan.h"

namespace switchyard {

// Bytes that EncodeRankPlan writes.
size_t EncodedSize(const RankPlanView& plan);

// The most bytes a plan of this shape can take, to size link buffers: `max_home_rows` home rows, `max_rows` rows in the
// whole step.
size_t MaxEncodedSize(int num_ranks, int num_slots, int top_k, int64_t max_home_rows, int64_t max_rows);

// Writes the plan at `out`, which holds at least EncodedSize(plan) bytes and is 4-byte aligned.
void EncodeRankPlan(const RankPlanView& plan, std::byte* out);

struct PlanLimits {
  int num_ranks = 0;
  int num_slots = 0;  // experts of this layer on this rank
  int64_t max_home_rows = 0;
  int64_t max_rows = 0;  // rows of the whole step, which bounds what one rank can receive
};

// A view over `bytes` (4-byte aligned), after checking every count, offset and index against the buffer and the limits.
// InvalidArgument names the field that is wrong.
absl::StatusOr<RankPlanView> DecodeRankPlan(std::span<const std::byte> bytes, const PlanLimits& limits);

}  // namespace switchyard
