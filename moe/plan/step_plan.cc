#include "moe/plan/step_plan.h"

#include <cassert>
#include <utility>

namespace switchyard {
namespace {

// Tells, row after row, whether a rank occurs for the first time in the row. Nothing has to be cleared between rows.
class FirstVisit {
 public:
  explicit FirstVisit(int num_ranks) : last_row_(num_ranks, -1) {}

  bool operator()(int64_t row, int rank) {
    if (last_row_[rank] == row) return false;
    last_row_[rank] = row;
    return true;
  }

 private:
  std::vector<int64_t> last_row_;
};

struct StepCounts {
  std::vector<int32_t> send_counts;                 // [source · R + destination]
  std::vector<std::vector<int32_t>> rows_per_slot;  // [rank][slot]
  std::vector<uint16_t> crossings;
  int64_t num_crossing_rows = 0;
};

// First pass: how many rows go where, and how many each expert gets.
StepCounts CountStep(const Routing& routing, const Placement& placement, const std::vector<int64_t>& home_offsets) {
  const int num_ranks = placement.num_ranks();
  StepCounts counts;
  counts.send_counts.resize(static_cast<size_t>(num_ranks) * num_ranks);
  counts.crossings.resize(routing.num_rows);
  for (int rank = 0; rank < num_ranks; ++rank) counts.rows_per_slot.emplace_back(placement.experts_of(rank).size());
  FirstVisit first_visit(num_ranks);
  const int32_t* choice = routing.expert_idx.data();
  for (int home = 0; home < num_ranks; ++home) {
    int32_t* send_counts = &counts.send_counts[static_cast<size_t>(home) * num_ranks];
    for (int64_t row = home_offsets[home]; row < home_offsets[home + 1]; ++row) {
      int crossings = 0;
      for (const int32_t* end = choice + routing.top_k; choice != end; ++choice) {
        if (*choice < 0) continue;
        const ExpertPlace place = placement.place(*choice, home);
        ++counts.rows_per_slot[place.rank][place.slot];
        if (!first_visit(row, place.rank)) continue;
        ++send_counts[place.rank];
        crossings += place.rank != home;
      }
      counts.crossings[row] = static_cast<uint16_t>(crossings);
      counts.num_crossing_rows += crossings;
    }
  }
  return counts;
}

// An empty plan of one rank: offsets are final, arrays have their size.
RankPlan SizeRankPlan(int rank, int num_ranks, const StepCounts& counts, int64_t num_home_rows) {
  RankPlan plan;
  plan.num_home_rows = num_home_rows;
  plan.send_offsets.assign(num_ranks + 1, 0);
  plan.recv_offsets.assign(num_ranks + 1, 0);
  for (int peer = 0; peer < num_ranks; ++peer) {
    plan.send_offsets[peer + 1] =
        plan.send_offsets[peer] + counts.send_counts[static_cast<size_t>(rank) * num_ranks + peer];
    plan.recv_offsets[peer + 1] =
        plan.recv_offsets[peer] + counts.send_counts[static_cast<size_t>(peer) * num_ranks + rank];
  }
  plan.expert_offsets.push_back(0);
  for (const int32_t num_rows : counts.rows_per_slot[rank]) {
    plan.expert_offsets.push_back(plan.expert_offsets.back() + num_rows);
  }
  plan.send_rows.resize(plan.send_offsets.back());
  plan.pair_rows.resize(plan.expert_offsets.back());
  plan.pair_weights.resize(plan.expert_offsets.back());
  return plan;
}

// Where the next pair of each slot is written: an index into pair_rows and pair_weights.
std::vector<std::vector<int32_t>> PairCursors(const std::vector<RankPlan>& plans) {
  std::vector<std::vector<int32_t>> cursors;
  for (const RankPlan& plan : plans) cursors.emplace_back(plan.expert_offsets.begin(), plan.expert_offsets.end() - 1);
  return cursors;
}

// Second pass: writes send rows and pairs. Homes are consecutive blocks of rows, so a destination receives its rows in
// row order regardless of their source, and one counter per destination numbers them.
void FillPlans(const Routing& routing, const Placement& placement, const std::vector<int64_t>& home_offsets,
               std::vector<RankPlan>& plans) {
  const int num_ranks = placement.num_ranks();
  FirstVisit first_visit(num_ranks);
  std::vector<std::vector<int32_t>> cursors = PairCursors(plans);
  std::vector<int32_t> recv_row(num_ranks, -1);  // receive row of the current row, by destination
  std::vector<int32_t*> send_row(num_ranks);     // where this home's next row for a destination is written
  size_t choice = 0;
  for (int home = 0; home < num_ranks; ++home) {
    for (int peer = 0; peer < num_ranks; ++peer) {
      send_row[peer] = plans[home].send_rows.data() + plans[home].send_offsets[peer];
    }
    for (int64_t row = home_offsets[home]; row < home_offsets[home + 1]; ++row) {
      const int32_t home_row = static_cast<int32_t>(row - home_offsets[home]);
      for (const size_t end = choice + routing.top_k; choice != end; ++choice) {
        const int32_t expert = routing.expert_idx[choice];
        if (expert < 0) continue;
        const ExpertPlace place = placement.place(expert, home);
        if (first_visit(row, place.rank)) {
          *send_row[place.rank]++ = home_row;
          ++recv_row[place.rank];
        }
        const int32_t pair = cursors[place.rank][place.slot]++;
        plans[place.rank].pair_rows[pair] = recv_row[place.rank];
        plans[place.rank].pair_weights[pair] = routing.weight[choice];
      }
    }
  }
}

std::vector<int64_t> RowsPerExpert(const Placement& placement, const StepCounts& counts) {
  std::vector<int64_t> rows(placement.num_experts());
  for (int expert = 0; expert < placement.num_experts(); ++expert) {
    const ExpertPlace place = placement.place(expert, /*home=*/0);
    rows[expert] = counts.rows_per_slot[place.rank][place.slot];
  }
  return rows;
}

}  // namespace

RankPlanView RankPlan::view() const {
  return {.num_ranks = static_cast<int>(send_offsets.size()) - 1,
          .num_home_rows = num_home_rows,
          .num_chunks = num_chunks,
          .send_offsets = send_offsets,
          .send_rows = send_rows,
          .recv_offsets = recv_offsets,
          .expert_offsets = expert_offsets,
          .pair_rows = pair_rows,
          .pair_weights = pair_weights};
}

std::vector<int64_t> HomeOffsets(int64_t num_rows, int num_ranks) {
  std::vector<int64_t> offsets(num_ranks + 1);
  for (int rank = 0; rank <= num_ranks; ++rank) offsets[rank] = num_rows * rank / num_ranks;
  return offsets;
}

StepPlan PlanStep(const Routing& routing, const Placement& placement, std::vector<int64_t> home_offsets) {
  const int num_ranks = placement.num_ranks();
  assert(static_cast<int>(home_offsets.size()) == num_ranks + 1);
  assert(home_offsets.front() == 0 && home_offsets.back() == routing.num_rows);
  StepCounts counts = CountStep(routing, placement, home_offsets);
  StepPlan plan;
  plan.ranks.reserve(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    plan.ranks.push_back(SizeRankPlan(rank, num_ranks, counts, home_offsets[rank + 1] - home_offsets[rank]));
  }
  FillPlans(routing, placement, home_offsets, plan.ranks);
  plan.home_offsets = std::move(home_offsets);
  plan.rows_per_expert = RowsPerExpert(placement, counts);
  plan.crossings = std::move(counts.crossings);
  plan.num_crossing_rows = counts.num_crossing_rows;
  return plan;
}

}  // namespace switchyard
