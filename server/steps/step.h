// One step on its way through the front: rows of one layer that go through the group together, and the plan that says
// which rank computes them.
//
// Thread-safety: a step has one user at a time. The holder of the dispatch baton builds it, then the thread of its last
// result finishes it. Between the two only StepsInFlight knows it, under the scheduler's lock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "moe/gating/routing.h"
#include "moe/plan/step_plan.h"
#include "server/requests/request.h"

namespace switchyard {

// When a step passed each stage.
struct StepTimeline {
  SteadyTime started;   // its preparation began
  SteadyTime uploaded;  // its rows are in the links
  SteadyTime gated;     // its routing is known
  SteadyTime planned;   // its plan is known, and it is submitted for the first time
  SteadyTime finished;  // the last rank has answered
};

struct Step {
  // Set when the step leaves the queues.
  StepId id;
  Batch batch;
  int slot = 0;    // where its rows and plans lie in the links
  int output = 0;  // where its output rows lie in the links
  // The placement that the step is planned with, which it keeps when the layer gets another one.
  std::shared_ptr<const VersionedPlacement> placement;

  // Set by StepBuilder, then constant.
  Routing routing;
  StepPlan plan;

  StepTimeline times;

  const ServedLayer& layer() const { return *batch.layer; }
  // Bytes of one row in the links.
  size_t link_row_bytes() const { return layer().spec.hidden_dim * SizeOf(layer().on_group.compute_dtype); }
  // Bytes of the rows that the step sends from one rank to another.
  int64_t crossing_bytes() const { return plan.num_crossing_rows * static_cast<int64_t>(link_row_bytes()); }
};

// Calls fn(rank, home_row, step_row, num_rows) for every run of the step's rows [begin, begin + num_rows) that has one
// home: row `step_row` of the step is row `home_row` of the rank's home block. Rank r's block holds the step's rows
// [home_offsets[r], home_offsets[r + 1]).
template <typename Fn>
void ForEachHomeRun(const std::vector<int64_t>& home_offsets, int64_t begin, int64_t num_rows, Fn fn) {
  const int num_ranks = static_cast<int>(home_offsets.size()) - 1;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int64_t from = std::max(begin, home_offsets[rank]);
    const int64_t to = std::min(begin + num_rows, home_offsets[rank + 1]);
    if (from < to) fn(rank, from - home_offsets[rank], from, to - from);
  }
}

}  // namespace switchyard
