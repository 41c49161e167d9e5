// A rank's plan cut into chunks, so that a device can compute one while the next is on its way between ranks.
//
// A chunk is a share of every block of rows: of the n rows that source s sends destination d, chunk c of C takes those
// at positions [n·c/C, n·(c+1)/C). Both sides cut at the same places without talking. Rows are chunk-major in the
// buffers of a chunked step: the send buffer holds chunk 0's rows for every destination, then chunk 1's, and so on, and
// the receive buffer likewise by source.
//
//   ChunkedPlan chunks;               kept from step to step, for its memory
//   chunks.Split(plan, plan.num_chunks);
//   gather with chunks.whole();  for each c exchange and compute with chunks.chunk(c);  combine with chunks.whole()
#pragma once

#include <cstdint>
#include <vector>

#include "moe/plan/step_plan.h"

namespace switchyard {

// Into how many chunks to cut a step that dispatches `bytes_per_rank` bytes between different ranks, on average over
// the ranks. More chunks hide more of the exchange behind the experts, and each costs an exchange's latency and makes
// the experts' matrices smaller: one up to 4 MiB, where an exchange takes little longer than its latency, two up to
// 16 MiB, four beyond. The front decides and tells all ranks (RankPlanView::num_chunks).
int ChooseNumChunks(int64_t bytes_per_rank);

// Not thread-safe. Views are valid until the next Split, and as long as the plan that was split.
class ChunkedPlan {
 public:
  // 1 ≤ num_chunks ≤ kMaxChunks. One chunk is the plan itself, and costs nothing.
  void Split(const RankPlanView& plan, int num_chunks);

  int num_chunks() const { return static_cast<int>(chunks_.size()); }

  // Chunk c with its rows numbered from 0, as a plan of its own: everything RankPlanView promises holds for it.
  const RankPlanView& chunk(int c) const { return chunks_[c]; }
  // Where chunk c begins in the send and the receive buffer.
  int64_t first_send_row(int c) const { return first_send_row_[c]; }
  int64_t first_recv_row(int c) const { return first_recv_row_[c]; }

  // What gathering and combining need: the rows of the whole send buffer. Without pairs, and with a segment of
  // send_offsets for every (chunk, destination), of recv_offsets for every (chunk, source): num_ranks counts those.
  const RankPlanView& whole() const { return whole_; }

 private:
  void SplitRows(const RankPlanView& plan);
  void SplitPairs(const RankPlanView& plan);
  void FindPairRuns(const RankPlanView& plan);
  void CopyPairRuns(const RankPlanView& plan);
  void MakeViews(const RankPlanView& plan);

  std::vector<RankPlanView> chunks_;
  RankPlanView whole_;
  std::vector<int64_t> first_send_row_, first_recv_row_;  // [C + 1]

  // What the views show, chunk after chunk.
  std::vector<int32_t> send_offsets_, recv_offsets_;              // [C, R + 1], from 0 in each chunk
  std::vector<int32_t> whole_send_offsets_, whole_recv_offsets_;  // [C · R + 1]
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
