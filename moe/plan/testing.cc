#include "moe/plan/testing.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/plan/step_plan.h"

namespace switchyard {
namespace {

void DropSomeChoices(Routing& routing, uint32_t seed) {
  std::mt19937 random(seed);
  for (int32_t& expert : routing.expert_idx) {
    if (random() % 4 == 0) expert = -1;
  }
}

// Homes of any size, some of them empty.
std::vector<int64_t> RandomHomeOffsets(int64_t num_rows, int num_ranks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> offsets = {0, num_rows};
  while (static_cast<int>(offsets.size()) < num_ranks + 1) offsets.push_back(random() % (num_rows + 1));
  std::sort(offsets.begin(), offsets.end());
  return offsets;
}

// Adds shared experts, which every row takes after its other choices.
void AddSharedExperts(int num_shared, PlanCase& plan_case) {
  const Routing routed = std::move(plan_case.routing);
  Routing& all = plan_case.routing;
  const int num_experts = plan_case.placement.num_experts();
  all = {};
  all.num_rows = routed.num_rows;
  all.top_k = routed.top_k + num_shared;
  for (int64_t row = 0; row < routed.num_rows; ++row) {
    for (int choice = 0; choice < all.top_k; ++choice) {
      const bool is_shared = choice >= routed.top_k;
      const int64_t from = row * routed.top_k + choice;
      all.expert_idx.push_back(is_shared ? num_experts + choice - routed.top_k : routed.expert_idx[from]);
      all.weight.push_back(is_shared ? 0.5f + static_cast<float>(row) / 64 : routed.weight[from]);
    }
  }
  std::vector<int> rank_of_expert;
  for (int expert = 0; expert < num_experts; ++expert) {
    rank_of_expert.push_back(plan_case.placement.place(expert, /*home=*/0).rank);
  }
  plan_case.placement = Placement(std::move(rank_of_expert), plan_case.placement.num_ranks(), num_shared);
}

PlanCase RandomCase(uint32_t seed) {
  std::mt19937 random(seed);
  const int num_ranks = 1 + random() % 9;
  const int num_experts = 1 + random() % 40;
  const int top_k = 1 + random() % std::min(num_experts, 9);
  const int64_t num_rows = random() % 5 == 0 ? random() % 4 : random() % 200;
  PlanCase random_case{
      absl::StrCat("random ", seed), RandomRouting(num_rows, top_k, num_experts, seed),
      random() % 2 ? RandomPlacement(num_experts, num_ranks, seed) : Placement::Even(num_experts, num_ranks),
      random() % 2 ? RandomHomeOffsets(num_rows, num_ranks, seed) : HomeOffsets(num_rows, num_ranks)};
  if (random() % 3 == 0) DropSomeChoices(random_case.routing, seed);
  if (random() % 3 == 0) AddSharedExperts(1 + random() % 3, random_case);
  return random_case;
}

PlanCase Even(std::string name, Routing routing, int num_experts, int num_ranks) {
  const int64_t num_rows = routing.num_rows;
  return {std::move(name), std::move(routing), Placement::Even(num_experts, num_ranks),
          HomeOffsets(num_rows, num_ranks)};
}

Routing AllTo(int expert, int64_t num_rows) {
  Routing routing = RandomRouting(num_rows, 1, 1, 7);
  std::fill(routing.expert_idx.begin(), routing.expert_idx.end(), expert);
  return routing;
}

}  // namespace

Routing RandomRouting(int64_t num_rows, int top_k, int num_experts, uint32_t seed) {
  std::mt19937 random(seed);
  Routing routing;
  routing.Resize(num_rows, top_k);
  std::vector<int32_t> experts(num_experts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int choice = 0; choice < top_k; ++choice) {
      std::swap(experts[choice], experts[choice + random() % (num_experts - choice)]);
      routing.expert_idx[row * top_k + choice] = experts[choice];
      routing.weight[row * top_k + choice] = 1.0f + static_cast<float>(row * top_k + choice) / 64;
    }
  }
  return routing;
}

Placement RandomPlacement(int num_experts, int num_ranks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int> rank_of_expert(num_experts);
  for (int& rank : rank_of_expert) rank = random() % num_ranks;
  return Placement(std::move(rank_of_expert), num_ranks);
}

std::vector<PlanCase> PlanCases() {
  std::vector<PlanCase> cases;
  for (uint32_t seed = 0; seed < 400; ++seed) cases.push_back(RandomCase(seed));
  for (int num_ranks = 1; num_ranks <= 9; ++num_ranks) {
    const auto named = [&](absl::string_view name) { return absl::StrCat(name, ", ", num_ranks, " ranks"); };
    cases.push_back(Even(named("no rows"), RandomRouting(0, 2, 8, 1), 8, num_ranks));
    cases.push_back(Even(named("one row"), RandomRouting(1, 2, 8, 2), 8, num_ranks));
    cases.push_back(Even(named("all rows to the first expert"), AllTo(0, 50), 16, num_ranks));
    cases.push_back(Even(named("all rows to the last expert"), AllTo(15, 50), 16, num_ranks));
    cases.push_back(Even(named("every expert"), RandomRouting(40, 10, 10, 3), 10, num_ranks));
    cases.push_back(Even(named("two experts"), RandomRouting(30, 2, 2, 4), 2, num_ranks));
    cases.push_back(Even(named("all dropped"), AllTo(-1, 20), 4, num_ranks));
  }
  return cases;
}

}  // namespace switchyard
