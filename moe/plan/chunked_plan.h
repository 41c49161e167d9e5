// A rank's plan cut into chunks, so that a device can compute one while the next is on its way between ranks.
//
// With C > 1 chunks, chunk 0 is the rows that this rank sends to itself. They are there from the start, so computing
// them hides the transfer of the first rows from other ranks. Each of the chunks 1 to C - 1 is a share of every other
// block: of the n rows that source s sends destination d ≠ s, chunk c takes those at positions [n·(c-1)/(C-1),
// n·c/(C-1)). Both sides cut at the same places without communicating.
//
// The buffers of a chunked step are chunk-major: the send buffer begins with the rows that stay on this rank, followed
// by chunk 1's rows for every destination, and so on; the receive buffer likewise, by source. Chunk 0 has one block in
// each buffer, with the same rows in the same order, so its rows can be read in the send buffer and need not be
// received. Combining adds a row's partial sums in the order of the send buffer: first this rank's, then those of other
// ranks, chunk by chunk.
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

// The number of chunks for a step that dispatches `bytes_per_rank` bytes between different ranks, on average over the
// ranks: one below 64 MiB, two (own rows, others') below 256 MiB, three from there on. More chunks hide more of the
// exchange behind the experts, but each costs an exchange's latency and makes the experts' matrices smaller. The front
// decides and tells all ranks (RankPlanView::num_chunks).
int ChooseNumChunks(int64_t bytes_per_rank);

// Not thread-safe. Views are valid until the next Split, and no longer than the plan that was split.
class ChunkedPlan {
 public:
  // `plan` belongs to `rank`; 1 ≤ num_chunks ≤ kMaxChunks. One chunk is the plan itself, and costs nothing.
  void Split(const RankPlanView& plan, int num_chunks, int rank);

  int num_chunks() const { return static_cast<int>(chunks_.size()); }

  // Chunk c with its rows numbered from 0, as a plan of its own: everything RankPlanView promises holds for it.
  const RankPlanView& chunk(int c) const { return chunks_[c]; }
  // Whether chunk c is the rows that stay on this rank.
  bool is_own(int c) const { return num_chunks() > 1 && c == 0; }
  // Where chunk c begins in the send and the receive buffer.
  int64_t first_send_row(int c) const { return send_.first_row[c]; }
  int64_t first_recv_row(int c) const { return recv_.first_row[c]; }

  // The rows of the whole send buffer, for gathering and combining. It has no pairs. send_offsets has a segment for
  // every (chunk, destination) and recv_offsets one for every (chunk, source); num_ranks is the number of these
  // segments.
  const RankPlanView& whole() const { return whole_; }

 private:
  // The blocks of the send buffer or of the receive buffer.
  struct Blocks {
    std::vector<int32_t> by_chunk;   // [C, R + 1] offsets, from 0 in each chunk
    std::vector<int32_t> whole;      // [C · R + 1] offsets in the whole buffer
    std::vector<int64_t> first_row;  // [C + 1], the first row of each chunk
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
  // The memory behind the views, chunk after chunk.
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
