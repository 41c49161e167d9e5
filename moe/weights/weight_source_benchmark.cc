// How fast synthetic experts are made: one expert of Qwen3-30B's shape per iteration, in elements per second.
#include <benchmark/benchmark.h>

#include "moe/weights/weight_source.h"

namespace switchyard {
namespace {

void BM_SyntheticExpert(benchmark::State& state, const char* dtype) {
  const auto source = OpenWeightSource(absl::StrCat("synthetic:dim=2048,hidden=768,experts=128,glu=1,dtype=", dtype));
  int expert_idx = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize((*source)->ReadExpert(0, expert_idx));
    (*source)->ReleaseExpert(0, expert_idx);
    expert_idx = (expert_idx + 1) % 128;
  }
  state.SetItemsProcessed(state.iterations() * 3 * 2048 * 768);
}
BENCHMARK_CAPTURE(BM_SyntheticExpert, fp64, "fp64");
BENCHMARK_CAPTURE(BM_SyntheticExpert, fp32, "fp32");
BENCHMARK_CAPTURE(BM_SyntheticExpert, fp16, "fp16");
BENCHMARK_CAPTURE(BM_SyntheticExpert, bf16, "bf16");

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
