#include "moe/plan/chunked_plan.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "moe/plan/plan_codec.h"
#include "moe/plan/testing.h"

namespace switchyard {
namespace {

StepPlan PlanOf(const PlanCase& plan_case) {
  return PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets);
}

// Identifies a pair however the step is cut: its slot, the rank that its row came from, the row's position among the
// source's rows for this destination, and its weight.
using Pair = std::tuple<int, int, int64_t, float>;

// Adds the pairs of a plan; `position(source, index)` is where in the source's whole block its index-th row lies.
template <typename Position>
void AddPairs(const RankPlanView& plan, const Position& position, std::multiset<Pair>* pairs) {
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    for (int32_t i = plan.expert_offsets[slot]; i < plan.expert_offsets[slot + 1]; ++i) {
      int source = 0;
      while (plan.pair_rows[i] >= plan.recv_offsets[source + 1]) ++source;
      pairs->emplace(slot, source, position(source, plan.pair_rows[i] - plan.recv_offsets[source]),
                     plan.pair_weights[i]);
    }
  }
}

int64_t BlockSize(std::span<const int32_t> offsets, int peer) { return offsets[peer + 1] - offsets[peer]; }

// Where chunk c's rows begin in a block of n rows.
int64_t PositionOfChunk(bool is_own, int64_t n, int c, int num_chunks) {
  return is_own || num_chunks == 1 || c == 0 ? 0 : n * (c - 1) / (num_chunks - 1);
}

TEST(ChunkedPlanTest, ChunksTogetherComputeTheSamePairs) {
  ChunkedPlan chunks;
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan step = PlanOf(plan_case);
    for (int rank = 0; rank < static_cast<int>(step.ranks.size()); ++rank) {
      const RankPlanView plan = step.ranks[rank].view();
      std::multiset<Pair> expected;
      AddPairs(
          plan, [](int, int64_t index) { return index; }, &expected);
      for (const int num_chunks : {1, 2, 3, 4, 8}) {
        chunks.Split(plan, num_chunks, rank);
        ASSERT_EQ(chunks.num_chunks(), num_chunks);
        std::multiset<Pair> found;
        for (int c = 0; c < num_chunks; ++c) {
          const auto position = [&](int source, int64_t index) {
            return PositionOfChunk(source == rank, BlockSize(plan.recv_offsets, source), c, num_chunks) + index;
          };
          AddPairs(chunks.chunk(c), position, &found);
        }
        EXPECT_EQ(found, expected) << num_chunks << " chunks";
      }
    }
  }
}

// The codec's reader, which checks everything an engine relies on, accepts every chunk as a plan.
TEST(ChunkedPlanTest, EveryChunkIsASoundPlan) {
  ChunkedPlan chunks;
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan step = PlanOf(plan_case);
    for (int rank = 0; rank < static_cast<int>(step.ranks.size()); ++rank) {
      chunks.Split(step.ranks[rank].view(), 3, rank);
      for (int c = 0; c < 3; ++c) {
        const RankPlanView& chunk = chunks.chunk(c);
        EXPECT_EQ(chunk.num_chunks, 3);
        std::vector<int32_t> words(EncodedSize(chunk) / 4);
        EncodeRankPlan(chunk, reinterpret_cast<std::byte*>(words.data()));
        const int64_t num_rows = plan_case.routing.num_rows;
        const auto decoded = DecodeRankPlan(std::as_bytes(std::span(words)), {.num_ranks = chunk.num_ranks,
                                                                              .num_slots = chunk.num_slots(),
                                                                              .max_home_rows = num_rows,
                                                                              .max_rows = num_rows});
        EXPECT_TRUE(decoded.ok()) << decoded.status();
      }
    }
  }
}

TEST(ChunkedPlanTest, BothSidesCutAtTheSamePlaces) {
  std::vector<ChunkedPlan> ranks;
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan step = PlanOf(plan_case);
    const int num_ranks = static_cast<int>(step.ranks.size());
    ranks.resize(num_ranks);
    for (int rank = 0; rank < num_ranks; ++rank) ranks[rank].Split(step.ranks[rank].view(), 4, rank);
    for (int c = 0; c < 4; ++c) {
      for (int source = 0; source < num_ranks; ++source) {
        for (int destination = 0; destination < num_ranks; ++destination) {
          EXPECT_EQ(BlockSize(ranks[source].chunk(c).send_offsets, destination),
                    BlockSize(ranks[destination].chunk(c).recv_offsets, source));
        }
      }
    }
  }
}

// Chunk 0 neither waits for another rank nor keeps one waiting; and it can be computed where it lies in the send
// buffer.
TEST(ChunkedPlanTest, FirstChunkIsExactlyTheRowsThatStay) {
  ChunkedPlan chunks;
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan step = PlanOf(plan_case);
    for (int rank = 0; rank < static_cast<int>(step.ranks.size()); ++rank) {
      const RankPlanView plan = step.ranks[rank].view();
      for (const int num_chunks : {2, 3, 8}) {
        chunks.Split(plan, num_chunks, rank);
        for (int c = 0; c < num_chunks; ++c) {
          const RankPlanView& chunk = chunks.chunk(c);
          EXPECT_EQ(chunks.is_own(c), c == 0);
          for (int peer = 0; peer < plan.num_ranks; ++peer) {
            if (chunks.is_own(c) == (peer == rank)) continue;
            EXPECT_EQ(BlockSize(chunk.send_offsets, peer), 0);
            EXPECT_EQ(BlockSize(chunk.recv_offsets, peer), 0);
          }
        }
        EXPECT_EQ(chunks.first_send_row(0), 0);
        EXPECT_EQ(chunks.chunk(0).num_send_rows(), BlockSize(plan.send_offsets, rank));
        EXPECT_EQ(chunks.chunk(0).num_recv_rows(), BlockSize(plan.recv_offsets, rank));
      }
    }
  }
}

// The whole send buffer is chunk after chunk, and for every destination it has the same rows in the same order as the
// plan.
TEST(ChunkedPlanTest, WholeSendBufferIsTheChunksInARow) {
  ChunkedPlan chunks;
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan step = PlanOf(plan_case);
    for (int rank_idx = 0; rank_idx < static_cast<int>(step.ranks.size()); ++rank_idx) {
      const RankPlan& rank = step.ranks[rank_idx];
      chunks.Split(rank.view(), 4, rank_idx);
      const RankPlanView& whole = chunks.whole();
      EXPECT_EQ(whole.num_home_rows, rank.num_home_rows);
      EXPECT_EQ(whole.num_recv_rows(), rank.recv_offsets.back());
      const int num_ranks = static_cast<int>(step.ranks.size());
      std::vector<std::vector<int32_t>> by_destination(num_ranks);
      std::vector<int32_t> in_a_row;
      for (int c = 0; c < 4; ++c) {
        const RankPlanView& chunk = chunks.chunk(c);
        EXPECT_EQ(chunks.first_send_row(c), static_cast<int64_t>(in_a_row.size()));
        in_a_row.insert(in_a_row.end(), chunk.send_rows.begin(), chunk.send_rows.end());
        for (int peer = 0; peer < num_ranks; ++peer) {
          const int segment = c * num_ranks + peer;
          ASSERT_EQ(BlockSize(whole.send_offsets, segment), BlockSize(chunk.send_offsets, peer));
          ASSERT_EQ(BlockSize(whole.recv_offsets, segment), BlockSize(chunk.recv_offsets, peer));
          by_destination[peer].insert(by_destination[peer].end(), in_a_row.begin() + whole.send_offsets[segment],
                                      in_a_row.begin() + whole.send_offsets[segment + 1]);
        }
      }
      EXPECT_EQ(std::vector<int32_t>(whole.send_rows.begin(), whole.send_rows.end()), in_a_row);
      std::vector<int32_t> joined;
      for (const auto& rows : by_destination) joined.insert(joined.end(), rows.begin(), rows.end());
      EXPECT_EQ(joined, rank.send_rows);
    }
  }
}

TEST(ChunkedPlanTest, OneChunkIsThePlanItself) {
  const PlanCase plan_case = PlanCases().front();
  const StepPlan step = PlanOf(plan_case);
  const RankPlanView plan = step.ranks[0].view();
  ChunkedPlan chunks;
  chunks.Split(plan, 4, 0);  // the state that an earlier step left behind does not matter
  chunks.Split(plan, 1, 0);
  ASSERT_EQ(chunks.num_chunks(), 1);
  EXPECT_FALSE(chunks.is_own(0));
  EXPECT_EQ(chunks.first_send_row(0), 0);
  EXPECT_EQ(chunks.first_recv_row(0), 0);
  for (const RankPlanView& same : {chunks.chunk(0), chunks.whole()}) {
    EXPECT_EQ(same.num_ranks, plan.num_ranks);
    EXPECT_EQ(same.send_rows.data(), plan.send_rows.data());
    EXPECT_EQ(same.pair_rows.data(), plan.pair_rows.data());
    EXPECT_EQ(same.pair_rows.size(), plan.pair_rows.size());
  }
}

TEST(ChunkedPlanTest, SmallExampleByHand) {
  // The second of two ranks: five rows come from the first and one is its own; two experts.
  const RankPlan plan{.num_home_rows = 3,
                      .send_offsets = {0, 3, 4},
                      .send_rows = {0, 1, 2, 1},
                      .recv_offsets = {0, 5, 6},
                      .expert_offsets = {0, 4, 6},
                      .pair_rows = {0, 1, 4, 5, 2, 3},
                      .pair_weights = {.1f, .2f, .3f, .4f, .5f, .6f}};
  const auto copy = []<typename T>(std::span<const T> values) { return std::vector<T>(values.begin(), values.end()); };
  const RankPlanView view = plan.view();
  ChunkedPlan chunks;
  chunks.Split(view, 3, /*rank=*/1);
  // Chunk 0 is row 5; chunk 1 has rows 0 and 1, chunk 2 rows 2, 3 and 4, all from the first rank.
  EXPECT_EQ(copy(chunks.chunk(0).recv_offsets), (std::vector<int32_t>{0, 0, 1}));
  EXPECT_EQ(copy(chunks.chunk(0).expert_offsets), (std::vector<int32_t>{0, 1, 1}));
  EXPECT_EQ(copy(chunks.chunk(0).pair_rows), (std::vector<int32_t>{0}));
  EXPECT_EQ(copy(chunks.chunk(0).pair_weights), (std::vector<float>{.4f}));
  EXPECT_EQ(copy(chunks.chunk(0).send_rows), (std::vector<int32_t>{1}));
  EXPECT_EQ(copy(chunks.chunk(1).recv_offsets), (std::vector<int32_t>{0, 2, 2}));
  EXPECT_EQ(copy(chunks.chunk(1).expert_offsets), (std::vector<int32_t>{0, 2, 2}));
  EXPECT_EQ(copy(chunks.chunk(1).pair_rows), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(copy(chunks.chunk(1).send_rows), (std::vector<int32_t>{0}));
  EXPECT_EQ(copy(chunks.chunk(2).recv_offsets), (std::vector<int32_t>{0, 3, 3}));
  EXPECT_EQ(copy(chunks.chunk(2).expert_offsets), (std::vector<int32_t>{0, 1, 3}));
  EXPECT_EQ(copy(chunks.chunk(2).pair_rows), (std::vector<int32_t>{2, 0, 1}));
  EXPECT_EQ(copy(chunks.chunk(2).pair_weights), (std::vector<float>{.3f, .5f, .6f}));
  EXPECT_EQ(copy(chunks.chunk(2).send_rows), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(chunks.first_recv_row(1), 1);
  EXPECT_EQ(chunks.first_recv_row(2), 3);
  EXPECT_EQ(chunks.first_send_row(1), 1);
  EXPECT_EQ(chunks.first_send_row(2), 2);
}

TEST(ChooseNumChunksTest, GrowsWithTheBytes) {
  EXPECT_EQ(ChooseNumChunks(0), 1);
  EXPECT_EQ(ChooseNumChunks((64 << 20) - 1), 1);
  EXPECT_EQ(ChooseNumChunks(64 << 20), 2);
  EXPECT_EQ(ChooseNumChunks((256 << 20) - 1), 2);
  EXPECT_EQ(ChooseNumChunks(256 << 20), 3);
  EXPECT_EQ(ChooseNumChunks(int64_t{1} << 40), 3);
}

}  // namespace
}  // namespace switchyard
