#include "moe/plan/chunked_plan.h"

#include <algorithm>
#include <cassert>

namespace switchyard {
namespace {

// On two H200 (docs/gpu.md) steps of 32 and 50 MiB per rank were fastest with one chunk, because a GEMM and an exchange
// that run at the same time take multiprocessors from each other, which costs more than waiting.
constexpr int64_t kTwoChunksFromBytes = int64_t{64} << 20;
constexpr int64_t kThreeChunksFromBytes = int64_t{256} << 20;

constexpr int32_t kNoPairs[] = {0};  // expert_offsets of a plan without experts

}  // namespace

int ChooseNumChunks(int64_t bytes_per_rank) {
  if (bytes_per_rank < kTwoChunksFromBytes) return 1;
  return bytes_per_rank < kThreeChunksFromBytes ? 2 : 3;
}

void ChunkedPlan::Split(const RankPlanView& plan, int num_chunks, int rank) {
  assert(num_chunks >= 1 && num_chunks <= kMaxChunks && rank >= 0 && rank < plan.num_ranks);
  rank_ = rank;
  if (num_chunks == 1) {
    chunks_.assign(1, plan);
    whole_ = plan;
    send_.first_row.assign({0, plan.num_send_rows()});
    recv_.first_row.assign({0, plan.num_recv_rows()});
    return;
  }
  chunks_.resize(num_chunks);
  SplitRows(plan);
  SplitPairs(plan);
  MakeViews(plan);
}

// `offsets` [R + 1] are the blocks of a buffer. Returns where chunk c's part of the block of `peer` begins, which is
// where the part of chunk c - 1 ends.
int32_t ChunkedPlan::PartBegin(std::span<const int32_t> offsets, int peer, int c) const {
  if (c == 0) return offsets[peer];
  if (peer == rank_) return offsets[peer + 1];
  const int64_t num_rows = offsets[peer + 1] - offsets[peer];
  return offsets[peer] + static_cast<int32_t>(num_rows * (c - 1) / (num_chunks() - 1));
}

void ChunkedPlan::SplitBlocks(std::span<const int32_t> offsets, Blocks* blocks) const {
  blocks->by_chunk.clear();
  blocks->whole.assign(1, 0);
  blocks->first_row.assign(1, 0);
  for (int c = 0; c < num_chunks(); ++c) {
    blocks->by_chunk.push_back(0);
    for (int peer = 0; peer + 1 < static_cast<int>(offsets.size()); ++peer) {
      const int32_t count = PartBegin(offsets, peer, c + 1) - PartBegin(offsets, peer, c);
      blocks->by_chunk.push_back(blocks->by_chunk.back() + count);
      blocks->whole.push_back(blocks->whole.back() + count);
    }
    blocks->first_row.push_back(blocks->whole.back());
  }
}

void ChunkedPlan::SplitRows(const RankPlanView& plan) {
  SplitBlocks(plan.send_offsets, &send_);
  SplitBlocks(plan.recv_offsets, &recv_);
  send_rows_.resize(plan.send_rows.size());
  auto out = send_rows_.begin();
  for (int c = 0; c < num_chunks(); ++c) {
    for (int peer = 0; peer < plan.num_ranks; ++peer) {
      out = std::copy(plan.send_rows.begin() + PartBegin(plan.send_offsets, peer, c),
                      plan.send_rows.begin() + PartBegin(plan.send_offsets, peer, c + 1), out);
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

// An expert's pairs are in the order of their receive rows, and those are grouped by source. Therefore the pairs of one
// (expert, source, chunk) are a run, and the runs follow one another.
void ChunkedPlan::FindPairRuns(const RankPlanView& plan) {
  run_ends_.assign(1, 0);
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    auto at = plan.pair_rows.begin() + plan.expert_offsets[slot];
    const auto end = plan.pair_rows.begin() + plan.expert_offsets[slot + 1];
    for (int source = 0; source < plan.num_ranks; ++source) {
      for (int c = 0; c < num_chunks(); ++c) {
        at = std::lower_bound(at, end, PartBegin(plan.recv_offsets, source, c + 1));
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
    const int32_t* const chunk_offsets = &recv_.by_chunk[static_cast<size_t>(c) * (plan.num_ranks + 1)];
    for (int slot = 0; slot < plan.num_slots(); ++slot) {
      for (int source = 0; source < plan.num_ranks; ++source) {
        const size_t run = (static_cast<size_t>(slot) * plan.num_ranks + source) * num_chunks() + c;
        const int32_t shift = chunk_offsets[source] - PartBegin(plan.recv_offsets, source, c);
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
    const size_t num_send_rows = send_.first_row[c + 1] - send_.first_row[c];
    const size_t num_pairs = first_pair_[c + 1] - first_pair_[c];
    chunks_[c] = {.num_ranks = plan.num_ranks,
                  .num_home_rows = plan.num_home_rows,
                  .num_chunks = num_chunks(),
                  .send_offsets = {&send_.by_chunk[c * num_offsets], num_offsets},
                  .send_rows = {send_rows_.data() + send_.first_row[c], num_send_rows},
                  .recv_offsets = {&recv_.by_chunk[c * num_offsets], num_offsets},
                  .expert_offsets = {&expert_offsets_[c * num_expert_offsets], num_expert_offsets},
                  .pair_rows = {pair_rows_.data() + first_pair_[c], num_pairs},
                  .pair_weights = {pair_weights_.data() + first_pair_[c], num_pairs}};
  }
  whole_ = {.num_ranks = plan.num_ranks * num_chunks(),
            .num_home_rows = plan.num_home_rows,
            .num_chunks = num_chunks(),
            .send_offsets = send_.whole,
            .send_rows = send_rows_,
            .recv_offsets = recv_.whole,
            .expert_offsets = kNoPairs,
            .pair_rows = {},
            .pair_weights = {}};
}

}  // namespace switchyard
