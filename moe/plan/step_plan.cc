#include "moe/plan/step_plan.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "base/ceil_div.h"

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

// Consecutive rows of one home, which one thread counts and later writes.
struct RowBlock {
  int home = 0;
  int64_t begin = 0, end = 0;
  int64_t num_crossing_rows = 0;
  // Rows for each destination, and pairs of each slot of all ranks. They are counted first. Once all blocks have been
  // counted, they are numbered: from then on `sent` and `pairs` say where the block's next row or pair is written in
  // the arrays of its home, or of its destination, and `received` which receive row of the destination it is.
  std::vector<int32_t> sent, received;  // [destination]
  std::vector<int32_t> pairs;           // [SlotNumbers]
};

// Numbers the slots of all ranks one after another.
class SlotNumbers {
 public:
  explicit SlotNumbers(const Placement& placement) {
    for (int rank = 0; rank < placement.num_ranks(); ++rank) {
      begins_.push_back(begins_.back() + static_cast<int>(placement.experts_of(rank).size()));
    }
  }
  int operator()(ExpertPlace place) const { return begins_[place.rank] + place.slot; }
  int begin(int rank) const { return begins_[rank]; }
  int size() const { return begins_.back(); }

 private:
  std::vector<int> begins_ = {0};  // by rank
};

// Blocks with fewer rows are not worth waking a thread.
constexpr int64_t kMinBlockRows = 512;
constexpr int64_t kBlocksPerThread = 2;  // fewer would leave threads idle at the end

// In the order of their rows. Without helpers each home is one block.
std::vector<RowBlock> CutBlocks(const std::vector<int64_t>& home_offsets, int num_threads) {
  const int64_t num_rows = home_offsets.back();
  const int64_t block_rows =
      std::max(kMinBlockRows, num_threads == 1 ? num_rows : CeilDiv(num_rows, kBlocksPerThread * num_threads));
  std::vector<RowBlock> blocks;
  for (int home = 0; home + 1 < static_cast<int>(home_offsets.size()); ++home) {
    for (int64_t begin = home_offsets[home]; begin < home_offsets[home + 1]; begin += block_rows) {
      RowBlock& block = blocks.emplace_back();
      block.home = home;
      block.begin = begin;
      block.end = std::min(begin + block_rows, home_offsets[home + 1]);
    }
  }
  return blocks;
}

// First pass: how many rows go where, and how many each expert gets.
void CountBlock(const Routing& routing, const Placement& placement, const SlotNumbers& slots,
                std::vector<uint16_t>& crossings_of_row, RowBlock& block) {
  block.sent.assign(placement.num_ranks(), 0);
  block.pairs.assign(slots.size(), 0);
  FirstVisit first_visit(placement.num_ranks());
  const int32_t* choice = routing.expert_idx.data() + block.begin * routing.top_k;
  for (int64_t row = block.begin; row < block.end; ++row) {
    int crossings = 0;
    for (const int32_t* const end = choice + routing.top_k; choice != end; ++choice) {
      if (*choice < 0) continue;
      const ExpertPlace place = placement.place(*choice, block.home);
      ++block.pairs[slots(place)];
      if (!first_visit(row, place.rank)) continue;
      ++block.sent[place.rank];
      crossings += place.rank != block.home;
    }
    crossings_of_row[row] = static_cast<uint16_t>(crossings);
    block.num_crossing_rows += crossings;
  }
}

// The counts of all blocks together.
struct StepCounts {
  std::vector<int32_t> sent;   // [source · R + destination]
  std::vector<int32_t> pairs;  // [SlotNumbers]
  int64_t num_crossing_rows = 0;
};

StepCounts AddUp(const std::vector<RowBlock>& blocks, int num_ranks, int num_slots) {
  StepCounts counts;
  counts.sent.resize(static_cast<size_t>(num_ranks) * num_ranks);
  counts.pairs.resize(num_slots);
  for (const RowBlock& block : blocks) {
    for (int peer = 0; peer < num_ranks; ++peer) {
      counts.sent[static_cast<size_t>(block.home) * num_ranks + peer] += block.sent[peer];
    }
    for (int slot = 0; slot < num_slots; ++slot) counts.pairs[slot] += block.pairs[slot];
    counts.num_crossing_rows += block.num_crossing_rows;
  }
  return counts;
}

// An empty plan of one rank: offsets are final, arrays have their size.
RankPlan SizeRankPlan(int rank, int num_ranks, const SlotNumbers& slots, const StepCounts& counts,
                      int64_t num_home_rows) {
  RankPlan plan;
  plan.num_home_rows = num_home_rows;
  plan.send_offsets.assign(num_ranks + 1, 0);
  plan.recv_offsets.assign(num_ranks + 1, 0);
  for (int peer = 0; peer < num_ranks; ++peer) {
    plan.send_offsets[peer + 1] = plan.send_offsets[peer] + counts.sent[static_cast<size_t>(rank) * num_ranks + peer];
    plan.recv_offsets[peer + 1] = plan.recv_offsets[peer] + counts.sent[static_cast<size_t>(peer) * num_ranks + rank];
  }
  plan.expert_offsets.push_back(0);
  for (int slot = slots.begin(rank); slot < slots.begin(rank + 1); ++slot) {
    plan.expert_offsets.push_back(plan.expert_offsets.back() + counts.pairs[slot]);
  }
  plan.send_rows.resize(plan.send_offsets.back());
  plan.pair_rows.resize(plan.expert_offsets.back());
  plan.pair_weights.resize(plan.expert_offsets.back());
  return plan;
}

// Turns each count into the number of the first, and `next` into the number after the last.
void Number(std::vector<int32_t>& counts, std::vector<int32_t>& next) {
  for (size_t i = 0; i < counts.size(); ++i) {
    const int32_t count = std::exchange(counts[i], next[i]);
    next[i] += count;
  }
}

// Homes are consecutive blocks of rows, so a destination receives its rows in row order regardless of their source, and
// one counter per destination numbers them.
void NumberBlocks(const std::vector<RankPlan>& plans, std::vector<RowBlock>& blocks) {
  std::vector<int32_t> next_pair, next_received(plans.size()), next_sent;
  for (const RankPlan& plan : plans) {
    next_pair.insert(next_pair.end(), plan.expert_offsets.begin(), plan.expert_offsets.end() - 1);
  }
  int home = -1;
  for (RowBlock& block : blocks) {
    if (std::exchange(home, block.home) != block.home) {
      next_sent.assign(plans[block.home].send_offsets.begin(), plans[block.home].send_offsets.end() - 1);
    }
    block.received = block.sent;
    Number(block.received, next_received);
    Number(block.sent, next_sent);
    Number(block.pairs, next_pair);
  }
}

// Second pass: writes send rows and pairs.
void FillBlock(const Routing& routing, const Placement& placement, const SlotNumbers& slots, int64_t first_home_row,
               std::vector<RankPlan>& plans, RowBlock& block) {
  FirstVisit first_visit(placement.num_ranks());
  std::vector<int32_t> recv_row(placement.num_ranks());  // receive row of the current row, by destination
  std::vector<int32_t>& send_rows = plans[block.home].send_rows;
  size_t choice = static_cast<size_t>(block.begin) * routing.top_k;
  for (int64_t row = block.begin; row < block.end; ++row) {
    for (const size_t end = choice + routing.top_k; choice != end; ++choice) {
      const int32_t expert = routing.expert_idx[choice];
      if (expert < 0) continue;
      const ExpertPlace place = placement.place(expert, block.home);
      if (first_visit(row, place.rank)) {
        send_rows[block.sent[place.rank]++] = static_cast<int32_t>(row - first_home_row);
        recv_row[place.rank] = block.received[place.rank]++;
      }
      const int32_t pair = block.pairs[slots(place)]++;
      plans[place.rank].pair_rows[pair] = recv_row[place.rank];
      plans[place.rank].pair_weights[pair] = routing.weight[choice];
    }
  }
}

std::vector<int64_t> RowsPerExpert(const Placement& placement, const SlotNumbers& slots, const StepCounts& counts) {
  std::vector<int64_t> rows(placement.num_experts());
  for (int expert = 0; expert < placement.num_experts(); ++expert) {
    rows[expert] = counts.pairs[slots(placement.place(expert, /*home=*/0))];
  }
  return rows;
}

template <typename Body>
void ForEachBlock(std::vector<RowBlock>& blocks, WorkPool* helpers, const Body& body) {
  if (helpers == nullptr) {
    std::for_each(blocks.begin(), blocks.end(), body);
    return;
  }
  helpers->Run(static_cast<int64_t>(blocks.size()), [&](int64_t idx, int) { body(blocks[idx]); });
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

StepPlan PlanStep(const Routing& routing, const Placement& placement, std::vector<int64_t> home_offsets,
                  WorkPool* helpers) {
  const int num_ranks = placement.num_ranks();
  assert(static_cast<int>(home_offsets.size()) == num_ranks + 1);
  assert(home_offsets.front() == 0 && home_offsets.back() == routing.num_rows);
  if (routing.num_rows < 2 * kMinBlockRows) helpers = nullptr;
  const SlotNumbers slots(placement);
  std::vector<RowBlock> blocks = CutBlocks(home_offsets, helpers == nullptr ? 1 : helpers->num_threads());
  StepPlan plan;
  plan.crossings.resize(routing.num_rows);
  ForEachBlock(blocks, helpers, [&](RowBlock& block) { CountBlock(routing, placement, slots, plan.crossings, block); });
  const StepCounts counts = AddUp(blocks, num_ranks, slots.size());
  plan.ranks.reserve(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    plan.ranks.push_back(SizeRankPlan(rank, num_ranks, slots, counts, home_offsets[rank + 1] - home_offsets[rank]));
  }
  NumberBlocks(plan.ranks, blocks);
  ForEachBlock(blocks, helpers, [&](RowBlock& block) {
    FillBlock(routing, placement, slots, home_offsets[block.home], plan.ranks, block);
  });
  plan.home_offsets = std::move(home_offsets);
  plan.rows_per_expert = RowsPerExpert(placement, slots, counts);
  plan.num_crossing_rows = counts.num_crossing_rows;
  return plan;
}

}  // namespace switchyard
