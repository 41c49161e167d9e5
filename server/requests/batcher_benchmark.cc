// Measures the time that a request takes in the batcher's queues, with few and with many requests queued: to be added,
// to leave in a batch and to be removed.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "server/requests/batcher.h"

namespace switchyard {
namespace {

constexpr int kNumClients = 100;
constexpr int kNumLayers = 24;

// The argument is the number of queued requests.
void Depths(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgName("queued")->Arg(100)->Arg(10'000)->Arg(100'000);
}

struct Queues {
  explicit Queues(int num_requests, int64_t num_rows = 8) {
    for (int i = 0; i < kNumLayers; ++i) {
      layers.push_back(std::shared_ptr<ServedLayer>(
          new ServedLayer{LayerId{i}, "m", {}, {}, {FirstPlacement(Placement::Even(1, 1))}}));
    }
    for (int i = 0; i < num_requests; ++i) requests.push_back(MakeRequest(i, num_rows));
    for (const auto& request : requests) batcher.Add(request);
  }

  std::shared_ptr<Request> MakeRequest(int i, int64_t num_rows) {
    auto request = std::make_shared<Request>();
    request->ask.layer = layers[i % kNumLayers];
    request->ask.num_rows = num_rows;
    request->ask.client = "ipv4:127.0.0.1:" + std::to_string(10'000 + i % kNumClients);
    request->ask.priority = Priority{1 + i % kNumPriorities};
    request->ask.arrival = now;
    request->ask.deadline = now + std::chrono::seconds(1 + i % 60);
    return request;
  }

  const SteadyTime now = Clock::Real().Now();
  std::vector<std::shared_ptr<ServedLayer>> layers;
  std::vector<std::shared_ptr<Request>> requests;
  Batcher batcher{{}};
};

// A request is added and cancelled.
void BM_AddRemove(benchmark::State& state) {
  Queues queues(state.range(0));
  const auto request = queues.MakeRequest(5, 8);
  for (auto _ : state) {
    queues.batcher.Add(request);
    benchmark::DoNotOptimize(queues.batcher.Remove(*request));
  }
}
BENCHMARK(BM_AddRemove)->Apply(Depths);

// A batch of 512 requests leaves, and as many are added. `per_request` is the time of one request.
void BM_AddTake(benchmark::State& state) {
  Queues queues(state.range(0));
  int64_t num_requests = 0;
  for (auto _ : state) {
    const auto batch = queues.batcher.Take(queues.now, true);
    num_requests += batch->pieces.size();
    for (const Piece& piece : batch->pieces) {
      if (piece.begin_row + piece.num_rows == piece.request->ask.num_rows) queues.batcher.Add(piece.request);
    }
  }
  state.SetItemsProcessed(num_requests);
  state.counters["per_request"] =
      benchmark::Counter(static_cast<double>(num_requests), benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_AddTake)->Apply(Depths);

// All requests are added, and then cancelled in the same order. `per_request` is the time of one request.
void BM_CancelAll(benchmark::State& state) {
  Queues queues(0);
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < state.range(0); ++i) requests.push_back(queues.MakeRequest(i, 8));
  for (auto _ : state) {
    for (const auto& request : requests) queues.batcher.Add(request);
    for (const auto& request : requests) queues.batcher.Remove(*request);
  }
  state.counters["per_request"] = benchmark::Counter(
      static_cast<double>(state.range(0)), benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_CancelAll)->Apply(Depths)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
