// A rank's plan cut into chunks, so that a device can compute one while the next is on its way between ranks.
//
// With C > 1 chunks, chunk 0 is the rows that this rank sends itself: they are there from the start, so computing them
// hides the way of the first rows of others. Chunks 1 to C - 1 are a share of every other block each: of the n rows
// that source s sends destination d ≠ s, chunk c takes those at positions [n·(c-1)/(C-1), n·c/(C-1)). Both sides cut at
// the same places without talking.
//
// Rows are chunk-major in the buffers of a chunked step: the send buffer begins with the rows that stay, followed by
// chunk 1's for every destination, and so on, and the receive buffer likewise by source. Chunk 0 has one block on
// either side, with the same rows in the same order, so what would be received can be read where it is sent from.
// Combining adds a row's partial sums in the order of the send buffer: first this rank's, then others' chunk by chunk.
//
//   ChunkedPlan chunks;               kept from step to step, for its memory
//   chunks.Split(plan, plan.num_chunks, rank);
//   gather with chunks.whole();  for each c exchange and compute with chunks.chunk(c);  combine with chunks.whole()
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/plan/step_plan.h"

namespace switchyard {

// Into how many chunks to cut a step that dispatches `bytes_per_rank` bytes between different ranks, on average over
// the ranks. More chunks hide more of the exchange behind the experts, and each costs an exchange's latency and makes
// the experts' matrices smaller: one below 64 MiB, two (own rows, others') below 256 MiB, three beyond. The front
// decides and tells all ranks (RankPlanView::num_chunks).
int ChooseNumChunks(int64_t bytes_per_rank);

// Not thread-safe. Views are valid until the next Split, and as long as the plan that was split.
class ChunkedPlan {
 public:
  // `plan` is that of `rank`; 1 ≤ num_chunks ≤ kMaxChunks. One chunk is the plan itself, and costs nothing.
  void Split(const RankPlanView& plan, int num_chunks, int rank);

  int num_chunks() const { return static_cast<int>(chunks_.size()); }

  // Chunk c with its rows numbered from 0, as a plan of its own: everything RankPlanView promises holds for it.
  const RankPlanView& chunk(int c) const { return chunks_[c]; }
  // Whether chunk c is the rows that stay on this rank.
  bool is_own(int c) const { return num_chunks() > 1 && c == 0; }
  // Where chunk c begins in the send and the receive buffer.
  int64_t first_send_row(int c) const { return send_.first_row[c]; }
  int64_t first_recv_row(int c) const { return recv_.first_row[c]; }

  // What gathering and combining need: the rows of the whole send buffer. Without pairs, and with a segment of
  // send_offsets for every (chunk, destination), of recv_offsets for every (chunk, source): num_ranks counts those.
  const RankPlanView& whole() const { return whole_; }

 private:
  // Of the send or of the receive buffer.
  struct Blocks {
    std::vector<int32_t> by_chunk;   // [C, R + 1], from 0 in each chunk
    std::vector<int32_t> whole;      // [C · R + 1]
    std::vector<int64_t> first_row;  // [C + 1], of each chunk
  };

  int32_t PartBegin(std::span<const int32_t> offsets, int peer, int c) const;
  void SplitBlocks(std::span<const int32_t> offsets, Blocks* blocks) const;
  void SplitRows(const RankPlanView& plan);
  void SplitPairs(const RankPlanView& plan);
  void FindPairRuns(const RankPlanView& plan);
  void CopyPairRuns(const RankPlanView& plan);
  void MakeViews(const RankPlanView& plan);

  int rank_ = 0;
  std::vector<RankPlanView> chunks_;
  RankPlanView whole_;
  // What the views show, chunk after chunk.
  Blocks send_, recv_;
  std::vector<int32_t> send_rows_;
  std::vector<int32_t> expert_offsets_;  // [C, S + 1]
  std::vector<int32_t> pair_rows_;
  std::vector<float> pair_weights_;
  // With i = (e·R + s)·C + c, the plan's pairs [run_ends_[i], run_ends_[i + 1]) are those of slot e from source s in
  // chunk c.
  std::vector<int32_t> run_ends_;
  std::vector<int64_t> first_pair_;  // [C + 1]
};

}  // namespace switchyard
