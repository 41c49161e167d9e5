// Routings and placements for tests: random ones, and edge cases that break planners.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/gating/routing.h"
#include "moe/plan/placement.h"

namespace switchyard {

struct PlanCase {
  std::string name;
  Routing routing;
  Placement placement;
  std::vector<int64_t> home_offsets;
};

// k distinct experts per row, each with a weight that identifies (row, choice). The seed determines the result.
Routing RandomRouting(int64_t num_rows, int top_k, int num_experts, uint32_t seed);

// Every expert on a random rank; some ranks may hold none.
Placement RandomPlacement(int num_experts, int num_ranks, uint32_t seed);

// Some hundred cases: 1 to 9 ranks, one row or none, k = 1 and k = E, more ranks than experts, all rows to one expert,
// dropped choices, shared experts, uneven homes. Every call returns the same cases.
std::vector<PlanCase> PlanCases();

}  // namespace switchyard
