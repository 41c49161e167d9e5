// Time of planning a step, and of encoding, decoding and cutting up one rank's share.
#include <benchmark/benchmark.h>

#include "moe/plan/chunked_plan.h"
#include "moe/plan/plan_codec.h"
#include "moe/plan/step_plan.h"
#include "moe/plan/testing.h"

namespace switchyard {
namespace {

// Arguments: rows, k, experts, ranks.
void StepSizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"T", "k", "E", "R"});
  benchmark->Args({16, 8, 128, 2})->Args({1024, 8, 128, 2})->Args({1024, 8, 128, 8})->Args({32768, 8, 256, 8});
}

void BM_PlanStep(benchmark::State& state) {
  const int num_experts = state.range(2), num_ranks = state.range(3);
  const Routing routing = RandomRouting(state.range(0), state.range(1), num_experts, 1);
  const Placement placement = Placement::Even(num_experts, num_ranks);
  for (auto _ : state) {
    benchmark::DoNotOptimize(PlanStep(routing, placement, HomeOffsets(routing.num_rows, num_ranks)));
  }
}
BENCHMARK(BM_PlanStep)->Apply(StepSizes)->Args({32768, 8, 256, 64})->Unit(benchmark::kMicrosecond);

// The last argument is the number of threads.
void BM_PlanStepWithHelpers(benchmark::State& state) {
  const int num_experts = state.range(2), num_ranks = state.range(3);
  const Routing routing = RandomRouting(state.range(0), state.range(1), num_experts, 1);
  const Placement placement = Placement::Even(num_experts, num_ranks);
  WorkPool helpers(static_cast<int>(state.range(4)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(PlanStep(routing, placement, HomeOffsets(routing.num_rows, num_ranks), &helpers));
  }
}
BENCHMARK(BM_PlanStepWithHelpers)
    ->ArgNames({"T", "k", "E", "R", "threads"})
    ->ArgsProduct({{1024, 11008, 32768}, {8}, {128}, {1, 2, 8}, {1, 2, 4, 8, 16}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

struct RankShare {
  explicit RankShare(const benchmark::State& state)
      : routing(RandomRouting(state.range(0), state.range(1), state.range(2), 1)),
        placement(Placement::Even(state.range(2), state.range(3))),
        step(PlanStep(routing, placement, HomeOffsets(routing.num_rows, placement.num_ranks()))),
        words(EncodedSize(plan()) / 4) {}
  RankPlanView plan() const { return step.ranks[0].view(); }
  std::byte* bytes() { return reinterpret_cast<std::byte*>(words.data()); }

  Routing routing;
  Placement placement;
  StepPlan step;
  std::vector<int32_t> words;
};

void BM_EncodeRankPlan(benchmark::State& state) {
  RankShare share(state);
  for (auto _ : state) {
    EncodeRankPlan(share.plan(), share.bytes());
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_EncodeRankPlan)->Apply(StepSizes)->Unit(benchmark::kMicrosecond);

void BM_DecodeRankPlan(benchmark::State& state) {
  RankShare share(state);
  EncodeRankPlan(share.plan(), share.bytes());
  const PlanLimits limits{.num_ranks = share.placement.num_ranks(),
                          .num_slots = share.plan().num_slots(),
                          .max_home_rows = share.routing.num_rows,
                          .max_rows = share.routing.num_rows};
  for (auto _ : state) {
    const auto plan = DecodeRankPlan({share.bytes(), share.words.size() * 4}, limits);
    if (!plan.ok()) state.SkipWithError("refused");
  }
}
BENCHMARK(BM_DecodeRankPlan)->Apply(StepSizes)->Unit(benchmark::kMicrosecond);

void BM_SplitIntoChunks(benchmark::State& state) {
  const RankShare share(state);
  ChunkedPlan chunks;
  for (auto _ : state) {
    chunks.Split(share.plan(), 3, /*rank=*/0);
    benchmark::ClobberMemory();
  }
  state.counters["pairs"] = static_cast<double>(share.plan().num_pairs());
}
BENCHMARK(BM_SplitIntoChunks)->Apply(StepSizes)->Args({16384, 8, 128, 2})->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
