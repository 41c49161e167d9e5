// The front's share of a step besides planning: bf16 rows to their experts and weights.
//
//   Route    router logits, scoring and top-k through a Gate: shape (D, E, k) of a well-known layer, rows T, threads P.
//            Every measured call takes other rows than the one before, in turn.
//   Select   scoring and top-k alone, from logits in the cache, on one thread
//
// ns_per_row is wall-clock time over rows.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/tensor/convert.h"
#include "moe/gating/gate.h"
#include "moe/gating/select_experts.h"

namespace switchyard {
namespace {

struct Shape {
  int64_t hidden_dim;
  int num_experts;
  int top_k;
};

constexpr Shape kQwen3{2048, 128, 8}, kDeepSeek{7168, 256, 8}, kMixtral{4096, 8, 2};

HostMatrix RandomBf16(int64_t num_rows, int64_t num_cols, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> some(1 << 16);
  for (float& value : some) value = normal(random);
  std::vector<float> values(num_rows * num_cols);
  // Every row begins elsewhere in the same stretch of random numbers.
  for (size_t i = 0; i < values.size(); ++i) values[i] = some[(i + i / num_cols * 7919) % some.size()];
  HostMatrix matrix = HostMatrix::Allocate(DType::kBF16, num_rows, num_cols);
  ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), DType::kBF16, matrix.buffer.data(),
                  values.size());
  return matrix;
}

void SetRate(benchmark::State& state, int64_t num_rows) {
  state.counters["ns_per_row"] = benchmark::Counter(static_cast<double>(state.iterations() * num_rows) * 1e-9,
                                                    benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void Route(benchmark::State& state, const Shape& shape) {
  const int64_t num_rows = state.range(0);
  const LayerSpec layer{.name = "0",
                        .hidden_dim = shape.hidden_dim,
                        .expert_dim = 8,
                        .num_experts = shape.num_experts,
                        .gate = {.top_k = shape.top_k, .normalization = Normalization::kSum}};
  const RouterWeights router{RandomBf16(shape.num_experts, shape.hidden_dim, 0.02f, 1)};
  std::shared_ptr<LinearContext> context = LinearContext::Create(static_cast<int>(state.range(1))).value();
  const auto gate = Gate::Create(layer, 0, router, context).value();
  const HostMatrix rows = RandomBf16(std::max<int64_t>(num_rows, 1024), shape.hidden_dim, 1.0f, 2);
  Routing routing;
  routing.Resize(num_rows, shape.top_k);
  int64_t first_row = 0;
  for (auto _ : state) {
    const absl::Status status = gate->Route(rows.view().Rows(first_row, num_rows), 0, /*top_k=*/0, &routing, nullptr);
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
    benchmark::DoNotOptimize(routing.weight.data());
    first_row = first_row + 2 * num_rows <= rows.num_rows ? first_row + num_rows : 0;
  }
  SetRate(state, num_rows);
}

void Select(benchmark::State& state) {
  constexpr int64_t kRows = 256;
  const int num_experts = static_cast<int>(state.range(0));
  const GateSpec spec{.top_k = static_cast<int>(state.range(1)),
                      .normalization = state.range(2) != 0 ? Normalization::kSum : Normalization::kNone};
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kRows * num_experts);
  for (float& logit : logits) logit = normal(random);
  Routing routing;
  routing.Resize(kRows, spec.top_k);
  for (auto _ : state) {
    SelectExperts(spec, {}, {logits.data(), kRows, num_experts, num_experts}, 0, &routing);
    benchmark::DoNotOptimize(routing.weight.data());
  }
  SetRate(state, kRows);
}

// DeepSeek-V3: sigmoid with a correction, 4 of 8 groups by their two best, 8 of 256.
void SelectInGroups(benchmark::State& state) {
  constexpr int64_t kRows = 256;
  constexpr int kExperts = 256;
  const GateSpec spec{.scoring = Scoring::kSigmoid,
                      .top_k = 8,
                      .num_groups = 8,
                      .groups_kept = 4,
                      .group_score = GroupScore::kTop2Sum,
                      .normalization = Normalization::kSum,
                      .norm_epsilon = 1e-20,
                      .scale = 2.5};
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kRows * kExperts), correction(kExperts);
  for (float& logit : logits) logit = normal(random);
  for (float& value : correction) value = 0.1f * normal(random);
  Routing routing;
  routing.Resize(kRows, spec.top_k);
  for (auto _ : state) {
    SelectExperts(spec, correction, {logits.data(), kRows, kExperts, kExperts}, 0, &routing);
    benchmark::DoNotOptimize(routing.weight.data());
  }
  SetRate(state, kRows);
}

void RowsAndThreads(benchmark::internal::Benchmark* run) {
  std::vector<int64_t> threads = {1};
  const int64_t num_cores = std::thread::hardware_concurrency();
  if (num_cores > 1) threads.push_back(num_cores);
  run->ArgNames({"T", "P"})->ArgsProduct({{1, 2, 7, 16, 64, 128, 200, 1024, 8192}, threads});
  run->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(Route, qwen3, kQwen3)->Apply(RowsAndThreads);
BENCHMARK_CAPTURE(Route, deepseek, kDeepSeek)->Apply(RowsAndThreads);
BENCHMARK_CAPTURE(Route, mixtral, kMixtral)->Apply(RowsAndThreads);
BENCHMARK(SelectInGroups);
BENCHMARK(Select)
    ->ArgNames({"E", "k", "renormalize"})
    ->ArgsProduct({{8}, {2}, {1}})
    ->ArgsProduct({{128, 256}, {8}, {0, 1}});

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
