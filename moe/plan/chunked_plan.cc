#include "moe/plan/chunked_plan.h"

#include <algorithm>
#include <cassert>

namespace switchyard {
namespace {

constexpr int64_t kTwoChunksFromBytes = int64_t{4} << 20;
constexpr int64_t kFourChunksFromBytes = int64_t{16} << 20;

constexpr int32_t kNoPairs[] = {0};  // expert_offsets of a plan without experts

// Where chunk c of a block of n rows begins.
int64_t ChunkBegin(int64_t n, int c, int num_chunks) { return n * c / num_chunks; }

// Cuts the blocks of `offsets` [R + 1]: chunk-major offsets from 0 in each chunk [C, R + 1], the same over the whole
// buffer [C · R + 1], and where each chunk begins in it [C + 1].
void SplitOffsets(std::span<const int32_t> offsets, int num_chunks, std::vector<int32_t>& by_chunk,
                  std::vector<int32_t>& whole, std::vector<int64_t>& first_row) {
  by_chunk.clear();
  whole.assign(1, 0);
  first_row.assign(1, 0);
  for (int c = 0; c < num_chunks; ++c) {
    by_chunk.push_back(0);
    for (size_t peer = 0; peer + 1 < offsets.size(); ++peer) {
      const int64_t n = offsets[peer + 1] - offsets[peer];
      const auto count = static_cast<int32_t>(ChunkBegin(n, c + 1, num_chunks) - ChunkBegin(n, c, num_chunks));
      by_chunk.push_back(by_chunk.back() + count);
      whole.push_back(whole.back() + count);
    }
    first_row.push_back(whole.back());
  }
}

}  // namespace

int ChooseNumChunks(int64_t bytes_per_rank) {
  if (bytes_per_rank < kTwoChunksFromBytes) return 1;
  return bytes_per_rank < kFourChunksFromBytes ? 2 : 4;
}

void ChunkedPlan::Split(const RankPlanView& plan, int num_chunks) {
  assert(num_chunks >= 1 && num_chunks <= kMaxChunks);
  if (num_chunks == 1) {
    chunks_.assign(1, plan);
    whole_ = plan;
    first_send_row_.assign({0, plan.num_send_rows()});
    first_recv_row_.assign({0, plan.num_recv_rows()});
    return;
  }
  chunks_.resize(num_chunks);
  SplitRows(plan);
  SplitPairs(plan);
  MakeViews(plan);
}

void ChunkedPlan::SplitRows(const RankPlanView& plan) {
  SplitOffsets(plan.send_offsets, num_chunks(), send_offsets_, whole_send_offsets_, first_send_row_);
  SplitOffsets(plan.recv_offsets, num_chunks(), recv_offsets_, whole_recv_offsets_, first_recv_row_);
  send_rows_.resize(plan.send_rows.size());
  auto out = send_rows_.begin();
  for (int c = 0; c < num_chunks(); ++c) {
    for (int peer = 0; peer < plan.num_ranks; ++peer) {
      const int64_t begin = plan.send_offsets[peer], n = plan.send_offsets[peer + 1] - begin;
      const int64_t from = ChunkBegin(n, c, num_chunks()), to = ChunkBegin(n, c + 1, num_chunks());
      out = std::copy_n(plan.send_rows.begin() + begin + from, to - from, out);
    }
  }
}

void ChunkedPlan::SplitPairs(const RankPlanView& plan) {
  FindPairRuns(plan);
  const int num_slots = plan.num_slots();
  expert_offsets_.clear();
  first_pair_.assign(1, 0);
  for (int c = 0; c < num_chunks(); ++c) {
    expert_offsets_.push_back(0);
    for (int slot = 0; slot < num_slots; ++slot) {
      int32_t count = 0;
      for (int source = 0; source < plan.num_ranks; ++source) {
        const size_t run = (static_cast<size_t>(slot) * plan.num_ranks + source) * num_chunks() + c;
        count += run_ends_[run + 1] - run_ends_[run];
      }
      expert_offsets_.push_back(expert_offsets_.back() + count);
    }
    first_pair_.push_back(first_pair_.back() + expert_offsets_.back());
  }
  CopyPairRuns(plan);
}

// An expert's pairs are in the order of their receive rows, which lie source after source: the pairs of one (expert,
// source, chunk) are a run, and the runs follow one another.
void ChunkedPlan::FindPairRuns(const RankPlanView& plan) {
  run_ends_.assign(1, 0);
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    auto at = plan.pair_rows.begin() + plan.expert_offsets[slot];
    const auto end = plan.pair_rows.begin() + plan.expert_offsets[slot + 1];
    for (int source = 0; source < plan.num_ranks; ++source) {
      const int64_t begin = plan.recv_offsets[source], n = plan.recv_offsets[source + 1] - begin;
      for (int c = 0; c < num_chunks(); ++c) {
        at = std::lower_bound(at, end, begin + ChunkBegin(n, c + 1, num_chunks()));
        run_ends_.push_back(static_cast<int32_t>(at - plan.pair_rows.begin()));
      }
    }
  }
}

void ChunkedPlan::CopyPairRuns(const RankPlanView& plan) {
  pair_rows_.resize(plan.pair_rows.size());
  pair_weights_.resize(plan.pair_weights.size());
  size_t out = 0;
  for (int c = 0; c < num_chunks(); ++c) {
    const int32_t* const chunk_offsets = &recv_offsets_[static_cast<size_t>(c) * (plan.num_ranks + 1)];
    for (int slot = 0; slot < plan.num_slots(); ++slot) {
      for (int source = 0; source < plan.num_ranks; ++source) {
        const size_t run = (static_cast<size_t>(slot) * plan.num_ranks + source) * num_chunks() + c;
        const int64_t n = plan.recv_offsets[source + 1] - plan.recv_offsets[source];
        const auto shift =
            static_cast<int32_t>(chunk_offsets[source] - plan.recv_offsets[source] - ChunkBegin(n, c, num_chunks()));
        for (int32_t pair = run_ends_[run]; pair < run_ends_[run + 1]; ++pair, ++out) {
          pair_rows_[out] = plan.pair_rows[pair] + shift;
          pair_weights_[out] = plan.pair_weights[pair];
        }
      }
    }
  }
}

void ChunkedPlan::MakeViews(const RankPlanView& plan) {
  const size_t num_offsets = plan.num_ranks + 1, num_expert_offsets = plan.num_slots() + 1;
  for (int c = 0; c < num_chunks(); ++c) {
    const size_t num_send_rows = first_send_row_[c + 1] - first_send_row_[c];
    const size_t num_pairs = first_pair_[c + 1] - first_pair_[c];
    chunks_[c] = {.num_ranks = plan.num_ranks,
                  .num_home_rows = plan.num_home_rows,
                  .send_offsets = {&send_offsets_[c * num_offsets], num_offsets},
                  .send_rows = {send_rows_.data() + first_send_row_[c], num_send_rows},
                  .recv_offsets = {&recv_offsets_[c * num_offsets], num_offsets},
                  .expert_offsets = {&expert_offsets_[c * num_expert_offsets], num_expert_offsets},
                  .pair_rows = {pair_rows_.data() + first_pair_[c], num_pairs},
                  .pair_weights = {pair_weights_.data() + first_pair_[c], num_pairs}};
  }
  whole_ = {.num_ranks = plan.num_ranks * num_chunks(),
            .num_home_rows = plan.num_home_rows,
            .send_offsets = whole_send_offsets_,
            .send_rows = send_rows_,
            .recv_offsets = whole_recv_offsets_,
            .expert_offsets = kNoPairs,
            .pair_rows = {},
            .pair_weights = {}};
}

}  // namespace switchyard
