#include "moe/plan/step_plan.h"

#include <cassert>
#include <utility>

namespace switchyard {
namespace {

// Tells, row after row, whether a rank is met for the first time in this row. Clearing between rows costs nothing.
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

// send_counts[source · R + destination], and the totals of the step.
struct StepCounts {
  std::vector<int32_t> send_counts;
  std::vector<int64_t> rows_per_expert;
  std::vector<uint16_t> crossings;
  int64_t num_crossing_rows = 0;
};

// First pass: how many rows go where, and how many each expert gets.
StepCounts CountStep(const Routing& routing, const Placement& placement, const std::vector<int64_t>& home_offsets) {
  const int num_ranks = placement.num_ranks();
  StepCounts counts{std::vector<int32_t>(static_cast<size_t>(num_ranks) * num_ranks),
                    std::vector<int64_t>(placement.num_experts()), std::vector<uint16_t>(routing.num_rows)};
  FirstVisit first_visit(num_ranks);
  const int32_t* choice = routing.expert_idx.data();
  for (int home = 0; home < num_ranks; ++home) {
    int32_t* send_counts = &counts.send_counts[static_cast<size_t>(home) * num_ranks];
    for (int64_t row = home_offsets[home]; row < home_offsets[home + 1]; ++row) {
      int crossings = 0;
      for (const int32_t* end = choice + routing.top_k; choice != end; ++choice) {
        if (*choice < 0) continue;
        ++counts.rows_per_expert[*choice];
        const int destination = placement.place(*choice).rank;
        if (!first_visit(row, destination)) continue;
        ++send_counts[destination];
        crossings += destination != home;
      }
      counts.crossings[row] = static_cast<uint16_t>(crossings);
      counts.num_crossing_rows += crossings;
    }
  }
  return counts;
}

// An empty plan of one rank: offsets are final, arrays have their size.
RankPlan SizeRankPlan(int rank, const Placement& placement, const StepCounts& counts, int64_t num_home_rows) {
  const int num_ranks = placement.num_ranks();
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
  for (const int expert : placement.experts_of(rank)) {
    plan.expert_offsets.push_back(plan.expert_offsets.back() + static_cast<int32_t>(counts.rows_per_expert[expert]));
  }
  plan.send_rows.resize(plan.send_offsets.back());
  plan.pair_rows.resize(plan.expert_offsets.back());
  plan.pair_weights.resize(plan.expert_offsets.back());
  return plan;
}

// Where the next pair of an expert is written.
struct PairCursor {
  int32_t* row = nullptr;
  float* weight = nullptr;
};

std::vector<PairCursor> PairCursors(const Placement& placement, std::vector<RankPlan>& plans) {
  std::vector<PairCursor> cursors(placement.num_experts());
  for (int expert = 0; expert < placement.num_experts(); ++expert) {
    const ExpertPlace& place = placement.place(expert);
    RankPlan& plan = plans[place.rank];
    const int32_t offset = plan.expert_offsets[place.slot];
    cursors[expert] = {plan.pair_rows.data() + offset, plan.pair_weights.data() + offset};
  }
  return cursors;
}

// Second pass: writes send rows and pairs. Homes are consecutive blocks of rows, so a destination receives its rows in
// row order whatever their source, and one counter per destination numbers them.
void FillPlans(const Routing& routing, const Placement& placement, const std::vector<int64_t>& home_offsets,
               std::vector<RankPlan>& plans) {
  const int num_ranks = placement.num_ranks();
  FirstVisit first_visit(num_ranks);
  std::vector<PairCursor> pairs = PairCursors(placement, plans);
  std::vector<int32_t> recv_row(num_ranks, -1);  // of the row in hand, by destination
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
        const int destination = placement.place(expert).rank;
        if (first_visit(row, destination)) {
          *send_row[destination]++ = home_row;
          ++recv_row[destination];
        }
        *pairs[expert].row++ = recv_row[destination];
        *pairs[expert].weight++ = routing.weight[choice];
      }
    }
  }
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
    plan.ranks.push_back(SizeRankPlan(rank, placement, counts, home_offsets[rank + 1] - home_offsets[rank]));
  }
  FillPlans(routing, placement, home_offsets, plan.ranks);
  plan.home_offsets = std::move(home_offsets);
  plan.rows_per_expert = std::move(counts.rows_per_expert);
  plan.crossings = std::move(counts.crossings);
  plan.num_crossing_rows = counts.num_crossing_rows;
  return plan;
}

}  // namespace switchyard
