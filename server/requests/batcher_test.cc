#include "server/requests/batcher.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

namespace switchyard {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

class BatcherTest : public testing::Test {
 protected:
  BatcherTest() {
    for (int i = 0; i < 3; ++i) {
      layers_.push_back(std::shared_ptr<ServedLayer>(
          new ServedLayer{LayerId{i}, "m", {}, {}, {FirstPlacement(Placement::Even(1, 1))}}));
    }
  }

  std::shared_ptr<Request> MakeRequest(int layer, int64_t num_rows, const std::string& client = "",
                                       Priority priority = Priority::kUsual) {
    auto request = std::make_shared<Request>();
    request->ask.client = client;
    request->ask.priority = priority;
    request->ask.layer = layers_[layer];
    request->ask.num_rows = num_rows;
    request->ask.arrival = clock_.Now();
    return request;
  }

  std::optional<Batch> Take(Batcher& batcher, bool idle = true) { return batcher.Take(clock_.Now(), idle); }

  std::vector<std::shared_ptr<ServedLayer>> layers_;
  FakeClock clock_;
};

// The number of rows of each client in a batch.
std::map<std::string, int64_t> RowsByClient(const Batch& batch) {
  std::map<std::string, int64_t> rows;
  for (const Piece& piece : batch.pieces) rows[piece.request->ask.client] += piece.num_rows;
  return rows;
}

TEST_F(BatcherTest, AnIdleGroupTakesWhatIsThere) {
  Batcher batcher({100, microseconds(0)});
  EXPECT_FALSE(Take(batcher).has_value());
  batcher.Add(MakeRequest(1, 3));
  batcher.Add(MakeRequest(1, 4));
  const auto batch = Take(batcher);
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->layer->id, LayerId{1});
  EXPECT_EQ(batch->num_rows, 7);
  EXPECT_EQ(batch->pieces.size(), 2u);
  EXPECT_EQ(batcher.num_rows(), 0);
}

TEST_F(BatcherTest, AWarmUpWaitsForNoCompany) {
  Batcher batcher({100, microseconds(500)});
  const auto warm_up = MakeRequest(1, 1);
  warm_up->ask.is_warm_up = true;
  batcher.Add(warm_up);
  EXPECT_EQ(batcher.NextReadyTime(), clock_.Now());
  EXPECT_TRUE(Take(batcher).has_value());
  batcher.Add(MakeRequest(1, 1));
  EXPECT_EQ(batcher.NextReadyTime(), clock_.Now() + microseconds(500));
  EXPECT_FALSE(Take(batcher).has_value());
}

TEST_F(BatcherTest, ABusyGroupLetsSmallBatchesGrow) {
  Batcher batcher({100, microseconds(0)});
  batcher.Add(MakeRequest(0, 24));
  EXPECT_FALSE(Take(batcher, false).has_value());
  batcher.Add(MakeRequest(0, 1));
  EXPECT_EQ(Take(batcher, false)->num_rows, 25) << "a quarter of a step is worth preparing ahead";
}

TEST_F(BatcherTest, LargeRequestsAreCutAndTheirRestGoesBehindOthers) {
  Batcher batcher({10, microseconds(0)});
  const auto large = MakeRequest(0, 25), small = MakeRequest(0, 2);
  batcher.Add(large);
  batcher.Add(small);
  const auto first = Take(batcher);
  ASSERT_EQ(first->pieces.size(), 1u);
  const auto second = Take(batcher);
  ASSERT_EQ(second->pieces.size(), 2u);
  EXPECT_EQ(second->pieces[0].request, small);
  EXPECT_EQ(second->pieces[1].begin_row, 10);
  EXPECT_EQ(second->pieces[1].num_rows, 8);
  EXPECT_EQ(Take(batcher)->num_rows, 7);
}

TEST_F(BatcherTest, RowsOfManyChoicesTakeMoreRoom) {
  Batcher batcher({10, microseconds(0)});
  const auto costly = MakeRequest(0, 4), plain = MakeRequest(0, 5);
  costly->ask.row_cost = 4;
  batcher.Add(plain);
  batcher.Add(costly);
  const auto first = Take(batcher);
  EXPECT_EQ(first->num_rows, 6) << "5 rows, and one that takes room for 4";
  EXPECT_EQ(Take(batcher)->num_rows, 2);
  EXPECT_EQ(Take(batcher)->num_rows, 1);
  EXPECT_EQ(batcher.num_rows(), 0);
}

TEST_F(BatcherTest, ARowLargerThanAStepLeavesAlone) {
  Batcher batcher({10, microseconds(0)});
  const auto costly = MakeRequest(0, 2);
  costly->ask.row_cost = 11;
  batcher.Add(costly);
  EXPECT_EQ(Take(batcher)->num_rows, 1);
  EXPECT_EQ(Take(batcher)->num_rows, 1);
}

TEST_F(BatcherTest, LayersTakeTurns) {
  Batcher batcher({10, microseconds(0)});
  batcher.Add(MakeRequest(0, 100));
  batcher.Add(MakeRequest(2, 100));
  std::vector<int> order;
  for (int i = 0; i < 4; ++i) order.push_back(Take(batcher)->layer->id.value);
  EXPECT_EQ(order, (std::vector<int>{0, 2, 0, 2}));
}

TEST_F(BatcherTest, RowsWaitForCompanyOnlySoLong) {
  Batcher batcher({10, microseconds(50)});
  const SteadyTime start = clock_.Now();
  batcher.Add(MakeRequest(0, 3));
  EXPECT_FALSE(Take(batcher).has_value());
  EXPECT_EQ(batcher.NextReadyTime(), start + microseconds(50));
  clock_.Advance(microseconds(49));
  EXPECT_FALSE(Take(batcher).has_value());
  clock_.Advance(microseconds(1));
  EXPECT_EQ(Take(batcher)->num_rows, 3);
  batcher.Add(MakeRequest(0, 10));
  EXPECT_EQ(Take(batcher)->num_rows, 10) << "a full batch waits for nobody";
}

TEST_F(BatcherTest, ARemovedRequestIsNeverDispatched) {
  Batcher batcher({10, microseconds(0)});
  const auto gone = MakeRequest(0, 15), stays = MakeRequest(0, 1);
  batcher.Add(gone);
  EXPECT_EQ(Take(batcher)->num_rows, 10);
  batcher.Add(stays);
  EXPECT_EQ(batcher.Remove(*gone), 5);
  EXPECT_EQ(batcher.Remove(*gone), 0);
  const auto batch = Take(batcher);
  ASSERT_EQ(batch->pieces.size(), 1u);
  EXPECT_EQ(batch->pieces[0].request, stays);
  EXPECT_EQ(batcher.num_rows(), 0);
}

// ---- Layers

TEST_F(BatcherTest, ABusyLayerDoesNotKeepASmallOneOut) {
  Batcher batcher({8, microseconds(0)});
  batcher.Add(MakeRequest(0, 100));
  batcher.Add(MakeRequest(1, 1));
  EXPECT_EQ(Take(batcher, false)->layer->id, LayerId{0});
  EXPECT_EQ(Take(batcher, false)->layer->id, LayerId{1}) << "steps are never out of flight while layer 0 is busy";
  EXPECT_EQ(Take(batcher, false)->layer->id, LayerId{0});
}

TEST_F(BatcherTest, ALayersOwnLimitCutsItsSteps) {
  layers_[1]->on_group.max_batch_rows = 4;
  Batcher batcher({100, microseconds(0)});
  batcher.Add(MakeRequest(0, 6));
  batcher.Add(MakeRequest(1, 6));
  EXPECT_EQ(Take(batcher)->num_rows, 6);
  EXPECT_EQ(Take(batcher, false)->num_rows, 4) << "a full step of that layer";
  EXPECT_EQ(Take(batcher)->num_rows, 2);
}

TEST_F(BatcherTest, ALayerThatComesBackWaitsItsTurn) {
  Batcher batcher({8, microseconds(0)});
  batcher.Add(MakeRequest(0, 100));
  std::vector<int> order;
  for (int i = 0; i < 6; ++i) {
    if (i % 2 == 0) batcher.Add(MakeRequest(1, 1));
    order.push_back(Take(batcher)->layer->id.value);
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 0, 1, 0, 1}));
}

TEST_F(BatcherTest, TheLayerWithTheMostUrgentRowsGoesFirst) {
  Batcher batcher({10, microseconds(0)});
  batcher.Add(MakeRequest(0, 100, "", Priority::kBackground));
  batcher.Add(MakeRequest(1, 15));
  batcher.Add(MakeRequest(2, 1, "", Priority::kHigh));
  std::vector<int> order;
  for (int i = 0; i < 4; ++i) order.push_back(Take(batcher)->layer->id.value);
  EXPECT_EQ(order, (std::vector<int>{2, 1, 1, 0}));
}

// ---- Levels

TEST_F(BatcherTest, HigherLevelsGoFirstAndLowerOnesFillTheStep) {
  Batcher batcher({10, microseconds(0)});
  const auto background = MakeRequest(0, 30, "a", Priority::kBackground), usual = MakeRequest(0, 4, "a"),
             high = MakeRequest(0, 3, "a", Priority::kHigh);
  for (const auto& request : {background, usual, high}) batcher.Add(request);
  EXPECT_EQ(batcher.rows_by_priority(), (std::array<int64_t, 3>{3, 4, 30}));
  const auto first = Take(batcher);
  ASSERT_EQ(first->pieces.size(), 3u);
  EXPECT_EQ(first->pieces[0].request, high);
  EXPECT_EQ(first->pieces[1].request, usual);
  EXPECT_EQ(first->pieces[2].request, background);
  EXPECT_EQ(first->pieces[2].num_rows, 3);
  EXPECT_EQ(batcher.rows_by_priority(), (std::array<int64_t, 3>{0, 0, 27}));
}

TEST_F(BatcherTest, WhoHasWaitedLongSharesTheHighestLevelsPlace) {
  Batcher batcher({.max_batch_rows = 32, .priority_aging = milliseconds(5)});
  batcher.Add(MakeRequest(0, 64, "slow", Priority::kBackground));
  clock_.Advance(milliseconds(4));
  batcher.Add(MakeRequest(0, 1000, "fast", Priority::kHigh));
  EXPECT_EQ(RowsByClient(*Take(batcher)), (std::map<std::string, int64_t>{{"fast", 32}}));
  clock_.Advance(milliseconds(1));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(RowsByClient(*Take(batcher)), (std::map<std::string, int64_t>{{"fast", 16}, {"slow", 16}}));
  }
  EXPECT_EQ(RowsByClient(*Take(batcher)), (std::map<std::string, int64_t>{{"fast", 32}}));
}

TEST_F(BatcherTest, AgeCountsBetweenLayersToo) {
  Batcher batcher({.max_batch_rows = 10, .priority_aging = milliseconds(5)});
  batcher.Add(MakeRequest(0, 5, "", Priority::kBackground));
  clock_.Advance(milliseconds(5));
  batcher.Add(MakeRequest(1, 20, "", Priority::kHigh));
  EXPECT_EQ(Take(batcher)->layer->id, LayerId{0});
}

// ---- Clients

TEST_F(BatcherTest, AFloodHoldsNobodyBack) {
  Batcher batcher({64, microseconds(0)});
  for (int i = 0; i < 500; ++i) batcher.Add(MakeRequest(0, 1, "many small"));
  batcher.Add(MakeRequest(0, 10'000, "one huge"));
  const auto single = MakeRequest(0, 2, "single");
  batcher.Add(single);
  const auto batch = Take(batcher);
  EXPECT_EQ(RowsByClient(*batch),
            (std::map<std::string, int64_t>{{"many small", 32}, {"one huge", 30}, {"single", 2}}));
}

TEST_F(BatcherTest, ClientsShareByRowsWhateverTheirRequestsAre) {
  Batcher batcher({64, microseconds(0)});
  const int64_t sizes[] = {1, 7, 300};
  for (int i = 0; i < 1200; ++i) batcher.Add(MakeRequest(0, sizes[i % 3], std::to_string(i % 3)));
  std::map<std::string, int64_t> rows;
  for (int i = 0; i < 12; ++i) {
    for (const auto& [client, count] : RowsByClient(*Take(batcher))) rows[client] += count;
  }
  for (const auto& [client, count] : rows) EXPECT_NEAR(count, 12 * 64 / 3.0, 4) << client;
}

TEST_F(BatcherTest, RequestsOfAClientLeaveInOrderUnlessLargerThanAStep) {
  Batcher batcher({10, microseconds(0)});
  const auto huge = MakeRequest(0, 25), first = MakeRequest(0, 6), second = MakeRequest(0, 6);
  for (const auto& request : {huge, first, second}) batcher.Add(request);
  EXPECT_EQ(Take(batcher)->pieces[0].request, huge);
  const auto batch = Take(batcher);
  EXPECT_EQ(batch->pieces[0].request, first);
  EXPECT_EQ(batch->pieces[1].request, second);
  const auto rest = Take(batcher);
  EXPECT_EQ(rest->pieces[0].request, second) << "the rest of a request that fits a step keeps its place";
  EXPECT_EQ(rest->pieces[1].request, huge);
}

TEST_F(BatcherTest, ARequestHasOnePieceInABatch) {
  Batcher batcher({64, microseconds(0)});
  batcher.Add(MakeRequest(0, 40, "a"));
  batcher.Add(MakeRequest(0, 40, "b"));
  const auto batch = Take(batcher);
  ASSERT_EQ(batch->pieces.size(), 2u);
  for (const Piece& piece : batch->pieces) EXPECT_EQ(piece.num_rows, 32);
}

// ---- Timeouts, deadlines and cancellation

TEST_F(BatcherTest, AQueueTimeoutEndsWhatHasNotLeft) {
  Batcher batcher({10, microseconds(0)});
  const auto waits = MakeRequest(0, 3), leaves = MakeRequest(1, 15);
  waits->ask.queue_timeout = leaves->ask.queue_timeout = microseconds(50);
  batcher.Add(leaves);
  batcher.Add(waits);
  EXPECT_EQ(batcher.NextExpiry(), clock_.Now() + microseconds(50));
  EXPECT_EQ(Take(batcher)->num_rows, 10);
  clock_.Advance(microseconds(49));
  EXPECT_TRUE(batcher.TakeExpired(clock_.Now()).empty());
  clock_.Advance(microseconds(1));
  const auto batch = Take(batcher);
  EXPECT_EQ(batcher.TakeExpired(clock_.Now()), (std::vector<std::shared_ptr<Request>>{waits}));
  ASSERT_EQ(batch->pieces.size(), 1u);
  EXPECT_EQ(batch->pieces[0].request, leaves) << "some of its rows had left in time";
  EXPECT_EQ(batcher.NextExpiry(), SteadyTime::max());
  EXPECT_EQ(batcher.num_rows(), 0);
}

TEST_F(BatcherTest, ADeadlineEndsAlsoWhatHasLeftInPart) {
  Batcher batcher({10, microseconds(0)});
  const auto request = MakeRequest(0, 25);
  request->ask.queue_timeout = microseconds(20);
  request->ask.deadline = clock_.Now() + microseconds(50);
  batcher.Add(request);
  EXPECT_EQ(batcher.NextExpiry(), clock_.Now() + microseconds(20));
  EXPECT_EQ(Take(batcher)->num_rows, 10);
  EXPECT_EQ(batcher.NextExpiry(), request->ask.deadline);
  clock_.Advance(microseconds(50));
  EXPECT_FALSE(Take(batcher).has_value());
  EXPECT_EQ(batcher.TakeExpired(clock_.Now()).size(), 1u);
  EXPECT_EQ(batcher.Remove(*request), 0);
}

TEST_F(BatcherTest, NothingLeavesTooLateToBeAnsweredInTime) {
  Batcher batcher({10, microseconds(0)});
  const auto patient = MakeRequest(0, 1), hasty = MakeRequest(0, 1);
  patient->ask.deadline = clock_.Now() + milliseconds(100);
  hasty->ask.deadline = clock_.Now() + milliseconds(8);
  batcher.Add(patient, milliseconds(10));
  batcher.Add(hasty, milliseconds(10));
  EXPECT_EQ(batcher.NextExpiry(), clock_.Now() + milliseconds(4)) << "half of its time is the queue's";
  clock_.Advance(milliseconds(4));
  EXPECT_EQ(batcher.TakeExpired(clock_.Now()).size(), 1u);
  EXPECT_EQ(batcher.NextExpiry(), clock_.Now() + milliseconds(71)) << "a quarter is for the way";
  clock_.Advance(milliseconds(70));
  EXPECT_EQ(Take(batcher)->pieces[0].request, patient);
  const auto late = MakeRequest(0, 1);
  late->ask.deadline = clock_.Now() + milliseconds(100);
  batcher.Add(late, milliseconds(20));
  EXPECT_EQ(batcher.NextExpiry(), clock_.Now() + milliseconds(60)) << "two steps before its deadline";
  const auto over = MakeRequest(0, 1);
  over->ask.deadline = clock_.Now() - milliseconds(1);
  batcher.Add(over, milliseconds(20));
  EXPECT_EQ(batcher.NextExpiry(), over->ask.deadline);
}

TEST_F(BatcherTest, WhatHasLeftInPartDoesNotEndByItsQueueTimeout) {
  Batcher batcher({10, microseconds(0)});
  const auto cut = MakeRequest(0, 15);
  cut->ask.queue_timeout = milliseconds(5);
  cut->ask.deadline = clock_.Now() + milliseconds(40);
  batcher.Add(cut, /*step_time=*/milliseconds(2));
  EXPECT_EQ(Take(batcher)->num_rows, 10);
  clock_.Advance(milliseconds(30));  // the other rows cannot be answered in time any more
  EXPECT_EQ(batcher.TakeExpired(clock_.Now()).size(), 1u);
  const absl::Status why = WhyExpired(*cut, clock_.Now());
  EXPECT_NE(why.message().find("deadline cannot be met"), std::string::npos) << why;
}

TEST_F(BatcherTest, EverythingCanBeTakenOut) {
  Batcher batcher({10, microseconds(0)});
  for (int i = 0; i < 9; ++i) batcher.Add(MakeRequest(i % 3, 15, std::to_string(i), Priority{1 + i % 3}));
  EXPECT_TRUE(Take(batcher).has_value());
  EXPECT_EQ(batcher.TakeAll().size(), 9u);
  EXPECT_EQ(batcher.num_rows(), 0);
  EXPECT_FALSE(Take(batcher).has_value());
}

}  // namespace
}  // namespace switchyard
