// Sends random traffic to the batcher under a fake clock, and checks the batcher's guarantees at every batch.
//
// A failure prints the seed of its round; BATCHER_SIMULATION_SEED=N runs that round alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/requests/batcher.h"

namespace switchyard {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kNumLayers = 4;
constexpr int kNumRounds = 300;

std::vector<std::shared_ptr<ServedLayer>> MakeLayers() {
  std::vector<std::shared_ptr<ServedLayer>> layers;
  for (int i = 0; i < kNumLayers; ++i) {
    layers.push_back(std::shared_ptr<ServedLayer>(
        new ServedLayer{LayerId{i}, "m", {}, {}, {FirstPlacement(Placement::Even(1, 1))}}));
  }
  return layers;
}

// Runs `round` with many seeds, or only with the seed in the environment.
template <typename Fn>
void ForManySeeds(Fn round) {
  const char* only = std::getenv("BATCHER_SIMULATION_SEED");
  const int first = only == nullptr ? 0 : std::atoi(only), count = only == nullptr ? kNumRounds : 1;
  for (int seed = first; seed < first + count && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("BATCHER_SIMULATION_SEED=" + std::to_string(seed));
    std::mt19937 random(static_cast<uint32_t>(seed));
    round(random);
  }
}

int64_t Draw(std::mt19937& random, std::initializer_list<int64_t> choices) {
  return *(choices.begin() + random() % choices.size());
}

// ---- Everything at once

// Simulates a batcher, a group that takes steps, and clients that send requests, cancel them and run out of time.
class Simulation {
 public:
  explicit Simulation(std::mt19937& random)
      : random_(random),
        options_{Draw(random, {1, 7, 32, 64, 100}), microseconds(Draw(random, {0, 0, 30, 400})),
                 milliseconds(Draw(random, {0, 1, 5, 1000}))},
        num_clients_(Draw(random, {1, 3, 20})),
        largest_(Draw(random, {1, 10, 300})),
        arrivals_percent_(Draw(random, {10, 30, 80})) {}

  // Events happen in random order; then the group takes the remaining requests.
  void Run() {
    for (int i = 0; i < 500 && !testing::Test::HasFailure(); ++i) {
      clock_.Advance(microseconds(random_() % 60));
      if (static_cast<int64_t>(random_() % 100) < arrivals_percent_) Arrive();
      if (random_() % 12 == 0) Cancel();
      if (random_() % 6 == 0) Expire();
      if (random_() % 4 == 0) in_flight_ = false;
      Step();
    }
    while (!live_.empty() && !testing::Test::HasFailure()) {
      clock_.Advance(options_.max_queue_delay + microseconds(1));
      in_flight_ = false;
      EXPECT_TRUE(Step() || live_.empty()) << "rows wait, and the group is idle";
    }
    EXPECT_EQ(batcher_.NextExpiry(), SteadyTime::max());
    EXPECT_EQ(batcher_.NextReadyTime(), std::nullopt);
  }

 private:
  // A request that should have rows in the queue.
  struct Live {
    int64_t rows_left() const { return request->ask.num_rows - next_row; }

    std::shared_ptr<Request> request;
    int64_t next_row = 0;
  };

  void Arrive() {
    auto request = std::make_shared<Request>();
    request->ask.layer = layers_[random_() % kNumLayers];
    request->ask.num_rows = 1 + random_() % largest_;
    request->ask.row_cost = random_() % 8 == 0 ? 1 + random_() % (2 * options_.max_batch_rows) : 1;
    request->ask.client = std::to_string(random_() % num_clients_);
    request->ask.priority = Priority{1 + static_cast<int>(random_() % kNumPriorities)};
    request->ask.arrival = clock_.Now();
    if (random_() % 3 == 0) request->ask.queue_timeout = microseconds(1 + random_() % 3000);
    if (random_() % 3 == 0) request->ask.deadline = clock_.Now() + microseconds(random_() % 6000);
    batcher_.Add(request);
    numbers_[request.get()] = num_arrived_;
    live_[num_arrived_++] = {request};
    CheckTotals();
  }

  void Cancel() {
    if (live_.empty()) return;
    const auto it = std::next(live_.begin(), random_() % live_.size());
    EXPECT_EQ(batcher_.Remove(*it->second.request), it->second.rows_left());
    EXPECT_EQ(batcher_.Remove(*it->second.request), 0);
    live_.erase(it);
    CheckTotals();
  }

  static SteadyTime ExpiryOf(const Live& live) {
    const Request& request = *live.request;
    const bool can_time_out = request.ask.queue_timeout.count() > 0 && live.next_row == 0;
    return can_time_out ? std::min(request.ask.deadline, request.ask.arrival + request.ask.queue_timeout)
                        : request.ask.deadline;
  }

  void Expire() {
    Ended(batcher_.TakeExpired(clock_.Now()));
    CheckTotals();
  }

  // Checks that exactly the requests in `expired` have expired.
  void Ended(const std::vector<std::shared_ptr<Request>>& expired) {
    for (const auto& request : expired) {
      const auto it = live_.find(numbers_[request.get()]);
      ASSERT_NE(it, live_.end()) << "it had ended before";
      EXPECT_LE(ExpiryOf(it->second), clock_.Now());
      live_.erase(it);
    }
    for (const auto& [number, live] : live_) EXPECT_GT(ExpiryOf(live), clock_.Now()) << "it should have ended";
  }

  // Takes a batch and checks it. Returns false when no batch is ready.
  bool Step() {
    const bool idle = !in_flight_;
    const auto batch = batcher_.Take(clock_.Now(), idle);
    Ended(batcher_.TakeExpired(clock_.Now()));
    if (!batch.has_value()) {
      CheckNothingIsReady(idle);
      CheckTotals();
      return false;
    }
    in_flight_ = true;
    CheckLayer(*batch);
    CheckRows(*batch);
    CheckTotals();
    return true;
  }

  int64_t RowsOf(const ServedLayer* layer) const {
    int64_t rows = 0;
    for (const auto& [number, live] : live_) rows += live.request->ask.layer.get() == layer ? live.rows_left() : 0;
    return rows;
  }

  // Work-conserving: rows may stay only while they wait for more rows, or while the group is busy and they are too few
  // to prepare a step ahead.
  void CheckNothingIsReady(bool idle) {
    const bool waits = options_.max_queue_delay.count() > 0;
    for (const auto& layer : layers_) {
      EXPECT_LT(RowsOf(layer.get()) * (idle || waits ? 1 : 4), options_.max_batch_rows);
    }
    for (const auto& [number, live] : live_) {
      EXPECT_TRUE(!idle || clock_.Now() - live.request->ask.arrival < options_.max_queue_delay);
    }
  }

  // 0 for the highest level and for requests that have aged.
  int LevelOf(const Request& request) const {
    const bool has_aged = clock_.Now() - request.ask.arrival >= options_.priority_aging;
    return has_aged ? 0 : static_cast<int>(request.ask.priority) - 1;
  }

  int TopLevel(const ServedLayer* layer) const {
    int top = kNumPriorities;
    for (const auto& [number, live] : live_) {
      if (live.request->ask.layer.get() == layer) top = std::min(top, LevelOf(*live.request));
    }
    return top;
  }

  // No other layer has more urgent rows, unless they wait for more rows. Layers with equally urgent rows get their
  // turns.
  void CheckLayer(const Batch& batch) {
    passed_over_[batch.layer] = 0;
    if (options_.max_queue_delay.count() > 0) return;
    for (const auto& layer : layers_) {
      if (layer.get() == batch.layer || RowsOf(layer.get()) == 0) continue;
      EXPECT_GE(TopLevel(layer.get()), TopLevel(batch.layer)) << "more urgent rows wait in another layer";
      if (TopLevel(layer.get()) > TopLevel(batch.layer)) continue;
      EXPECT_LT(++passed_over_[layer.get()], kNumLayers);
    }
  }

  // The rows are the next rows of live requests of one layer, no row left while a more urgent one stayed, and the step
  // is as full as possible but not too full.
  void CheckRows(const Batch& batch) {
    int lowest = 0;
    int64_t cost = 0;
    for (const Piece& piece : batch.pieces) {
      const auto it = live_.find(numbers_[piece.request.get()]);
      ASSERT_NE(it, live_.end()) << "its rows had left, or it had ended";
      EXPECT_EQ(piece.begin_row, it->second.next_row);
      EXPECT_EQ(piece.request->ask.layer.get(), batch.layer);
      EXPECT_GT(piece.num_rows, 0);
      lowest = std::max(lowest, LevelOf(*piece.request));
      cost += piece.num_rows * piece.request->ask.row_cost;
      it->second.next_row += piece.num_rows;
      EXPECT_GE(it->second.rows_left(), 0);
      if (it->second.rows_left() == 0) live_.erase(it);
    }
    if (batch.num_rows > 1) {
      EXPECT_LE(cost, options_.max_batch_rows);
    }
    int64_t largest_left = 0;
    for (const auto& [number, live] : live_) {
      if (live.request->ask.layer.get() != batch.layer) continue;
      EXPECT_GE(LevelOf(*live.request), lowest) << "a less urgent row left before";
      largest_left = std::max(largest_left, live.request->ask.row_cost);
    }
    if (largest_left > 0) {
      EXPECT_GT(cost + largest_left, options_.max_batch_rows) << "room was left";
    }
  }

  void CheckTotals() {
    std::array<int64_t, kNumPriorities> rows{};
    for (const auto& [number, live] : live_) {
      rows[static_cast<int>(live.request->ask.priority) - 1] += live.rows_left();
    }
    EXPECT_EQ(batcher_.rows_by_priority(), rows);
    EXPECT_EQ(batcher_.num_rows(), rows[0] + rows[1] + rows[2]);
    for (const auto& layer : layers_) {
      if (RowsOf(layer.get()) == 0) passed_over_[layer.get()] = 0;
    }
  }

  std::mt19937& random_;
  const BatcherOptions options_;
  const int64_t num_clients_;
  const int64_t largest_;
  const int64_t arrivals_percent_;
  const std::vector<std::shared_ptr<ServedLayer>> layers_ = MakeLayers();
  FakeClock clock_;
  Batcher batcher_{options_};
  bool in_flight_ = false;
  int64_t num_arrived_ = 0;
  std::map<int64_t, Live> live_;                             // by number of arrival
  std::unordered_map<const Request*, int64_t> numbers_;      // numbers of arrival
  std::unordered_map<const ServedLayer*, int> passed_over_;  // how often in a row equally urgent layers went first
};

TEST(BatcherSimulation, WhateverHappens) {
  ForManySeeds([](std::mt19937& random) { Simulation(random).Run(); });
}

// ---- Shares

// Clients that always have requests waiting, of any size and cost.
class Floods {
 public:
  Floods(std::mt19937& random, BatcherOptions options) : random_(random), options_(options), batcher_(options) {}

  std::shared_ptr<Request> Add(const std::string& client, Priority priority, int64_t num_rows, int64_t row_cost = 1,
                               int layer = 0) {
    auto request = std::make_shared<Request>();
    request->ask.layer = layers_[layer];
    request->ask.num_rows = num_rows;
    request->ask.row_cost = row_cost;
    request->ask.client = client;
    request->ask.priority = priority;
    request->ask.arrival = clock_.Now();
    batcher_.Add(request);
    rows_waiting_[request->ask.client] += num_rows;
    return request;
  }

  // Adds requests until each client has rows of at least two steps waiting.
  void Refill(int num_clients, Priority priority, int64_t largest_cost, int layer = 0) {
    for (int i = 0; i < num_clients; ++i) {
      const std::string client = std::to_string(layer) + "-" + std::to_string(i);
      while (rows_waiting_[client] < 2 * options_.max_batch_rows) {
        Add(client, priority, 1 + random_() % Draw(random_, {1, 20, 1000}), 1 + random_() % largest_cost, layer);
      }
    }
  }

  Batch Take() {
    auto batch = batcher_.Take(clock_.Now(), true);
    for (const Piece& piece : batch->pieces) rows_waiting_[piece.request->ask.client] -= piece.num_rows;
    return *std::move(batch);
  }

  // The number of batches up to the one in which the request's last row leaves.
  int BatchesUntilGone(const Request& request, const std::function<void()>& refill) {
    for (int batches = 1;; ++batches) {
      refill();
      for (const Piece& piece : Take().pieces) {
        if (piece.request.get() == &request && piece.begin_row + piece.num_rows == request.ask.num_rows) return batches;
      }
    }
  }

  FakeClock clock_;

 private:
  std::mt19937& random_;
  const BatcherOptions options_;
  const std::vector<std::shared_ptr<ServedLayer>> layers_ = MakeLayers();
  Batcher batcher_;
  std::map<std::string, int64_t> rows_waiting_;
};

// At any time, clients that always have rows waiting have got equal shares, except for a turn and a row or two.
TEST(BatcherSimulation, ClientsShareEveryStep) {
  ForManySeeds([](std::mt19937& random) {
    const int64_t max_batch_rows = Draw(random, {32, 100, 512});
    const int64_t largest_cost = Draw(random, {1, 1, 5, 32});
    const int num_clients = static_cast<int>(Draw(random, {2, 5, 40}));
    Floods floods(random, {.max_batch_rows = max_batch_rows});
    std::map<std::string, int64_t> shares;
    for (int step = 0; step < 60; ++step) {
      floods.Refill(num_clients, Priority::kUsual, largest_cost);
      for (const Piece& piece : floods.Take().pieces) {
        shares[piece.request->ask.client] += piece.num_rows * piece.request->ask.row_cost;
      }
      if (static_cast<int>(shares.size()) < num_clients) continue;  // some clients have had no turn yet
      const auto [least, most] = std::minmax_element(
          shares.begin(), shares.end(), [](const auto& one, const auto& other) { return one.second < other.second; });
      ASSERT_LE(most->second - least->second, max_batch_rows / 32 + 2 * largest_cost);
    }
  });
}

// However much other clients have queued, a client's single row leaves after one turn of each of them. 32 turns make up
// a step.
TEST(BatcherSimulation, NobodyIsHeldBackByAFlood) {
  ForManySeeds([](std::mt19937& random) {
    const int num_clients = 1 + random() % 100;
    Floods floods(random, {.max_batch_rows = Draw(random, {32, 100, 512})});
    const auto refill = [&] { floods.Refill(num_clients, Priority::kUsual, 1); };
    refill();
    for (int i = random() % 5; i > 0; --i) floods.Take();
    const auto single = floods.Add("single", Priority::kUsual, 1);
    EXPECT_LE(floods.BatchesUntilGone(*single, refill), num_clients / 32 + 2);
  });
}

// Background work that has waited for priority_aging leaves although the highest level of every layer is flooded.
TEST(BatcherSimulation, NobodyStarves) {
  ForManySeeds([](std::mt19937& random) {
    const int num_clients = 1 + random() % 40;
    Floods floods(random, {.max_batch_rows = Draw(random, {32, 100}), .priority_aging = milliseconds(20)});
    const auto refill = [&] {
      for (int layer = 0; layer < kNumLayers; ++layer) floods.Refill(num_clients, Priority::kHigh, 1, layer);
    };
    const auto background = floods.Add("background", Priority::kBackground, 1);
    refill();
    for (int i = 0; i < 10; ++i) {
      for (const Piece& piece : floods.Take().pieces) EXPECT_NE(piece.request, background) << "it is less urgent";
      refill();
    }
    floods.clock_.Advance(milliseconds(20));
    EXPECT_LE(floods.BatchesUntilGone(*background, refill), kNumLayers);
  });
}

}  // namespace
}  // namespace switchyard
