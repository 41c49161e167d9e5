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
  std::vector<int32_t> pairs;           // [expert], the shared ones last
};

// Numbers the slots of all ranks: an expert's by its index, and behind them those of the shared experts, rank by rank.
class SlotNumbers {
 public:
  explicit SlotNumbers(const Placement& placement)
      : num_experts_(placement.num_experts()), num_shared_(placement.num_shared()), num_ranks_(placement.num_ranks()) {}
  // The slot of an expert for rows whose home is `home`.
  int operator()(int expert, int home) const { return expert < num_experts_ ? expert : home * num_shared_ + expert; }
  int size() const { return num_experts_ + num_ranks_ * num_shared_; }
  int num_experts() const { return num_experts_ + num_shared_; }

 private:
  const int num_experts_, num_shared_, num_ranks_;
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
  block.pairs.assign(slots.num_experts(), 0);
  FirstVisit first_visit(placement.num_ranks());
  const int32_t* choice = routing.expert_idx.data() + block.begin * routing.top_k;
  for (int64_t row = block.begin; row < block.end; ++row) {
    int crossings = 0;
    for (const int32_t* const end = choice + routing.top_k; choice != end; ++choice) {
      if (*choice < 0) continue;
      ++block.pairs[*choice];
      const int rank = placement.place(*choice, block.home).rank;
      if (!first_visit(row, rank)) continue;
      ++block.sent[rank];
      crossings += rank != block.home;
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

StepCounts AddUp(const std::vector<RowBlock>& blocks, int num_ranks, const SlotNumbers& slots) {
  StepCounts counts;
  counts.sent.resize(static_cast<size_t>(num_ranks) * num_ranks);
  counts.pairs.resize(slots.size());
  for (const RowBlock& block : blocks) {
    for (int peer = 0; peer < num_ranks; ++peer) {
      counts.sent[static_cast<size_t>(block.home) * num_ranks + peer] += block.sent[peer];
    }
    for (int expert = 0; expert < slots.num_experts(); ++expert) {
      counts.pairs[slots(expert, block.home)] += block.pairs[expert];
    }
    counts.num_crossing_rows += block.num_crossing_rows;
  }
  return counts;
}

// An empty plan of one rank: offsets are final, arrays have their size.
RankPlan SizeRankPlan(int rank, const Placement& placement, const SlotNumbers& slots, const StepCounts& counts,
                      int64_t num_home_rows) {
  const int num_ranks = placement.num_ranks();
  RankPlan plan;
  plan.num_home_rows = num_home_rows;
  plan.send_offsets.assign(num_ranks + 1, 0);
  plan.recv_offsets.assign(num_ranks + 1, 0);
  for (int peer = 0; peer < num_ranks; ++peer) {
    plan.send_offsets[peer + 1] = plan.send_offsets[peer] + counts.sent[static_cast<size_t>(rank) * num_ranks + peer];
    plan.recv_offsets[peer + 1] = plan.recv_offsets[peer] + counts.sent[static_cast<size_t>(peer) * num_ranks + rank];
  }
  plan.expert_offsets.push_back(0);
  for (const int expert : placement.experts_of(rank)) {
    plan.expert_offsets.push_back(plan.expert_offsets.back() + counts.pairs[slots(expert, rank)]);
  }
  plan.send_rows.resize(plan.send_offsets.back());
  plan.pair_rows.resize(plan.expert_offsets.back());
  plan.pair_weights.resize(plan.expert_offsets.back());
  return plan;
}

// Turns a count into the number of the first, and `next` into the number after the last.
void Number(int32_t& count, int32_t& next) { next += std::exchange(count, next); }

// Homes are consecutive blocks of rows, so a destination receives its rows in row order regardless of their source, and
// one counter per destination numbers them.
void NumberBlocks(const Placement& placement, const SlotNumbers& slots, const std::vector<RankPlan>& plans,
                  std::vector<RowBlock>& blocks) {
  std::vector<int32_t> next_pair(slots.size()), next_received(plans.size()), next_sent;
  for (int rank = 0; rank < placement.num_ranks(); ++rank) {
    for (size_t slot = 0; slot < placement.experts_of(rank).size(); ++slot) {
      next_pair[slots(placement.experts_of(rank)[slot], rank)] = plans[rank].expert_offsets[slot];
    }
  }
  int home = -1;
  for (RowBlock& block : blocks) {
    if (std::exchange(home, block.home) != block.home) next_sent = plans[block.home].send_offsets;
    block.received = block.sent;
    for (int rank = 0; rank < placement.num_ranks(); ++rank) {
      Number(block.received[rank], next_received[rank]);
      Number(block.sent[rank], next_sent[rank]);
    }
    for (int expert = 0; expert < slots.num_experts(); ++expert) {
      Number(block.pairs[expert], next_pair[slots(expert, block.home)]);
    }
  }
}

// Second pass: writes send rows and pairs.
void FillBlock(const Routing& routing, const Placement& placement, int64_t first_home_row, std::vector<RankPlan>& plans,
               RowBlock& block) {
  FirstVisit first_visit(placement.num_ranks());
  std::vector<int32_t> recv_row(placement.num_ranks());  // receive row of the current row, by destination
  int32_t* const send_rows = plans[block.home].send_rows.data();
  size_t choice = static_cast<size_t>(block.begin) * routing.top_k;
  for (int64_t row = block.begin; row < block.end; ++row) {
    for (const size_t end = choice + routing.top_k; choice != end; ++choice) {
      const int32_t expert = routing.expert_idx[choice];
      if (expert < 0) continue;
      const int rank = placement.place(expert, block.home).rank;
      if (first_visit(row, rank)) {
        send_rows[block.sent[rank]++] = static_cast<int32_t>(row - first_home_row);
        recv_row[rank] = block.received[rank]++;
      }
      const int32_t pair = block.pairs[expert]++;
      plans[rank].pair_rows[pair] = recv_row[rank];
      plans[rank].pair_weights[pair] = routing.weight[choice];
    }
  }
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
  const StepCounts counts = AddUp(blocks, num_ranks, slots);
  plan.ranks.reserve(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    plan.ranks.push_back(SizeRankPlan(rank, placement, slots, counts, home_offsets[rank + 1] - home_offsets[rank]));
  }
  NumberBlocks(placement, slots, plan.ranks, blocks);
  ForEachBlock(blocks, helpers,
               [&](RowBlock& block) { FillBlock(routing, placement, home_offsets[block.home], plan.ranks, block); });
  plan.home_offsets = std::move(home_offsets);
  plan.rows_per_expert.assign(counts.pairs.begin(), counts.pairs.begin() + placement.num_experts());
  plan.num_crossing_rows = counts.num_crossing_rows;
  return plan;
}

}  // namespace switchyard
