// The plan of one step: which rows each rank sends to which ranks, and which expert computes which of them.
//
// A step takes T rows. They are split over the ranks in consecutive blocks, their *home*: rank r is home to rows
// [home_offsets[r], home_offsets[r+1]). A home sends one copy of a row to every rank that holds one of the row's
// experts, however many of them that rank holds. A copy for its own rank does not leave the rank. The destination
// computes the row's weighted partial sum over its experts and returns it in the order received; the home adds the
// partial sums of a row in rank order. All counts are exact, so ranks do not exchange counts.
//
// Vocabulary: source = home rank of a row; destination = rank whose experts compute it; pair = one (row, expert).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/work_pool.h"
#include "moe/gating/routing.h"
#include "moe/plan/placement.h"

namespace switchyard {

inline constexpr int kMaxChunks = 8;

// The part of a step's plan that one rank needs. All offsets start with 0 and never decrease; the view owns no memory.
struct RankPlanView {
  int num_ranks = 0;
  int64_t num_home_rows = 0;
  // The number of parts, 1 to kMaxChunks and the same on every rank of a step, into which a device that can overlap
  // exchange and computation divides the rows (chunked_plan.h). Offsets and rows here are those of the undivided step,
  // except in the views of a ChunkedPlan, whose step is divided already.
  int num_chunks = 1;
  // Rows to send: send_rows[send_offsets[d] .. send_offsets[d+1]) are home row indices for destination d, increasing.
  std::span<const int32_t> send_offsets;  // [num_ranks + 1]
  std::span<const int32_t> send_rows;     // [send_offsets.back()]
  // Rows received from source s lie at [recv_offsets[s], recv_offsets[s+1]) of the receive buffer.
  std::span<const int32_t> recv_offsets;  // [num_ranks + 1]
  // Pairs of local expert slot e: [expert_offsets[e], expert_offsets[e+1]); increasing receive row within an expert.
  std::span<const int32_t> expert_offsets;  // [num_slots + 1]
  std::span<const int32_t> pair_rows;       // receive-buffer row of each pair
  std::span<const float> pair_weights;      // routing weight of each pair

  int num_slots() const { return static_cast<int>(expert_offsets.size()) - 1; }
  int64_t num_send_rows() const { return send_rows.size(); }
  int64_t num_recv_rows() const { return recv_offsets.back(); }
  int64_t num_pairs() const { return pair_rows.size(); }
};

// Owns the memory behind a RankPlanView.
struct RankPlan {
  int64_t num_home_rows = 0;
  int num_chunks = 1;
  std::vector<int32_t> send_offsets, send_rows, recv_offsets, expert_offsets, pair_rows;
  std::vector<float> pair_weights;

  RankPlanView view() const;
};

struct StepPlan {
  std::vector<int64_t> home_offsets;     // [num_ranks + 1], rows of the step
  std::vector<RankPlan> ranks;           // [num_ranks]
  std::vector<int64_t> rows_per_expert;  // [num_experts], without shared ones
  std::vector<uint16_t> crossings;       // [T] copies of each row that leave its home rank
  int64_t num_crossing_rows = 0;         // their sum: rows dispatched between different ranks
};

// Consecutive blocks, as even as possible: rank r is home to rows [T·r/R, T·(r+1)/R).
std::vector<int64_t> HomeOffsets(int64_t num_rows, int num_ranks);

// Plans a step. Pure: equal arguments give equal plans. `home_offsets` is as from HomeOffsets (any non-decreasing split
// of the rows works). Every plan has one chunk; a caller that wants more sets num_chunks on all ranks. Every expert
// index of `routing` must lie in the placement; a negative one means that this choice was dropped (capacity) and is
// skipped. `helpers`, which may be null, share the work of a large step, in two passes over blocks of its rows; the
// plan does not depend on them.
StepPlan PlanStep(const Routing& routing, const Placement& placement, std::vector<int64_t> home_offsets,
                  WorkPool* helpers = nullptr);

}  // namespace switchyard
