#include "server/batcher.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace switchyard {
namespace {

using std::chrono::microseconds;

class BatcherTest : public testing::Test {
 protected:
  BatcherTest() {
    for (int i = 0; i < 3; ++i) {
      layers_.push_back(
          std::unique_ptr<ServedLayer>(new ServedLayer{LayerId{i}, "m", {}, DType::kF32, Placement::Even(1, 1), {}}));
    }
  }

  std::shared_ptr<Request> MakeRequest(int layer, int64_t num_rows) {
    auto request = std::make_shared<Request>();
    request->layer = layers_[layer].get();
    request->num_rows = num_rows;
    request->arrival = clock_.Now();
    return request;
  }

  std::vector<std::unique_ptr<ServedLayer>> layers_;
  FakeClock clock_;
};

TEST_F(BatcherTest, AnIdleGroupTakesWhatIsThere) {
  Batcher batcher({3, 100, microseconds(0)});
  EXPECT_FALSE(batcher.Take(clock_.Now(), true).has_value());
  batcher.Add(MakeRequest(1, 3));
  batcher.Add(MakeRequest(1, 4));
  const auto batch = batcher.Take(clock_.Now(), true);
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->layer->id, LayerId{1});
  EXPECT_EQ(batch->num_rows, 7);
  EXPECT_EQ(batch->pieces.size(), 2u);
  EXPECT_EQ(batcher.num_rows(), 0);
}

TEST_F(BatcherTest, ABusyGroupLetsSmallBatchesGrow) {
  Batcher batcher({3, 100, microseconds(0)});
  batcher.Add(MakeRequest(0, 24));
  EXPECT_FALSE(batcher.Take(clock_.Now(), false).has_value());
  batcher.Add(MakeRequest(0, 1));
  EXPECT_EQ(batcher.Take(clock_.Now(), false)->num_rows, 25) << "a quarter of a step is worth preparing ahead";
}

TEST_F(BatcherTest, LargeRequestsAreCutAndTheirRestGoesBehindOthers) {
  Batcher batcher({3, 10, microseconds(0)});
  const auto large = MakeRequest(0, 25), small = MakeRequest(0, 2);
  batcher.Add(large);
  batcher.Add(small);
  const auto first = batcher.Take(clock_.Now(), true);
  ASSERT_EQ(first->pieces.size(), 1u);
  const auto second = batcher.Take(clock_.Now(), true);
  ASSERT_EQ(second->pieces.size(), 2u);
  EXPECT_EQ(second->pieces[0].request, small);
  EXPECT_EQ(second->pieces[1].begin_row, 10);
  EXPECT_EQ(second->pieces[1].num_rows, 8);
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 7);
}

TEST_F(BatcherTest, RowsOfManyChoicesTakeMoreRoom) {
  Batcher batcher({3, 10, microseconds(0)});
  const auto costly = MakeRequest(0, 4), plain = MakeRequest(0, 5);
  costly->row_cost = 4;
  batcher.Add(plain);
  batcher.Add(costly);
  const auto first = batcher.Take(clock_.Now(), true);
  EXPECT_EQ(first->num_rows, 6) << "5 rows, and one that takes room for 4";
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 2);
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 1);
  EXPECT_EQ(batcher.num_rows(), 0);
}

TEST_F(BatcherTest, ARowLargerThanAStepLeavesAlone) {
  Batcher batcher({3, 10, microseconds(0)});
  const auto costly = MakeRequest(0, 2);
  costly->row_cost = 11;
  batcher.Add(costly);
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 1);
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 1);
}

TEST_F(BatcherTest, LayersTakeTurns) {
  Batcher batcher({3, 10, microseconds(0)});
  batcher.Add(MakeRequest(0, 100));
  batcher.Add(MakeRequest(2, 100));
  std::vector<int> order;
  for (int i = 0; i < 4; ++i) order.push_back(batcher.Take(clock_.Now(), true)->layer->id.value);
  EXPECT_EQ(order, (std::vector<int>{0, 2, 0, 2}));
}

TEST_F(BatcherTest, RowsWaitForCompanyOnlySoLong) {
  Batcher batcher({3, 10, microseconds(50)});
  const SteadyTime start = clock_.Now();
  batcher.Add(MakeRequest(0, 3));
  EXPECT_FALSE(batcher.Take(clock_.Now(), true).has_value());
  EXPECT_EQ(batcher.NextReadyTime(), start + microseconds(50));
  clock_.Advance(microseconds(49));
  EXPECT_FALSE(batcher.Take(clock_.Now(), true).has_value());
  clock_.Advance(microseconds(1));
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 3);
  batcher.Add(MakeRequest(0, 10));
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 10) << "a full batch waits for nobody";
}

TEST_F(BatcherTest, ARemovedRequestIsNeverDispatched) {
  Batcher batcher({3, 10, microseconds(0)});
  const auto gone = MakeRequest(0, 15), stays = MakeRequest(0, 1);
  batcher.Add(gone);
  EXPECT_EQ(batcher.Take(clock_.Now(), true)->num_rows, 10);
  batcher.Add(stays);
  EXPECT_EQ(batcher.Remove(*gone), 5);
  EXPECT_EQ(batcher.Remove(*gone), 0);
  const auto batch = batcher.Take(clock_.Now(), true);
  ASSERT_EQ(batch->pieces.size(), 1u);
  EXPECT_EQ(batch->pieces[0].request, stays);
  EXPECT_EQ(batcher.num_rows(), 0);
}

// Whatever comes and goes: every row that is not removed leaves exactly once, in order, and no batch is too large.
TEST_F(BatcherTest, EveryRowLeavesExactlyOnce) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const int64_t max_rows = 1 + random() % 20;
    Batcher batcher({3, max_rows, microseconds(random() % 3)});
    std::map<const Request*, int64_t> dispatched;
    std::vector<std::shared_ptr<Request>> added;
    int64_t expected = 0;
    auto take = [&](bool idle) {
      auto batch = batcher.Take(clock_.Now(), idle);
      if (!batch.has_value()) return false;
      EXPECT_LE(batch->num_rows, max_rows);
      for (const Piece& piece : batch->pieces) {
        EXPECT_EQ(piece.begin_row, dispatched[piece.request.get()]);
        EXPECT_EQ(piece.request->layer, batch->layer);
        dispatched[piece.request.get()] += piece.num_rows;
      }
      return true;
    };
    for (int i = 0; i < 60; ++i) {
      clock_.Advance(microseconds(random() % 2));
      if (random() % 3 != 0) {
        added.push_back(MakeRequest(random() % 3, 1 + random() % 30));
        expected += added.back()->num_rows;
        batcher.Add(added.back());
      } else if (random() % 4 == 0 && !added.empty()) {
        expected -= batcher.Remove(*added[random() % added.size()]);
      } else {
        take(random() % 2 == 0);
      }
    }
    clock_.Advance(microseconds(10));
    while (take(true)) {
    }
    int64_t total = 0;
    for (const auto& [request, rows] : dispatched) total += rows;
    EXPECT_EQ(total, expected);
    EXPECT_EQ(batcher.num_rows(), 0);
  }
}

}  // namespace
}  // namespace switchyard
