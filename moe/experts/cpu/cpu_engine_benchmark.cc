// Compares the engine with the library under it (oneDNN), for one layer of the size of Qwen3-30B-A3B's in bf16: 1024
// rows of width 2048, 128 experts of width 768, top-8.
//
//   OneDnnAlone   the step's GEMMs as bare primitives on packed weights: gate and up as one product, nothing fused, no
//                 rows moved
//   EngineStep    GatherSendRows, RunExperts and Combine of a single rank
//   GateAndPlan   router, top-k and PlanStep of the same rows
//   Ratios        runs the three in turn and takes the fastest time of each, because other work on the host can only
//                 slow them. engine_vs_onednn is the engine's speed relative to the library alone; gate_plan_share is
//                 the time of gate and plan relative to the engine's step
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "moe/experts/cpu/bare_onednn.h"
#include "moe/experts/cpu/cpu_engine.h"
#include "moe/gating/gate.h"
#include "moe/plan/step_plan.h"

namespace switchyard {
namespace {

LayerSpec Qwen3Layer() {
  LayerSpec layer{.name = "0", .hidden_dim = kBenchDim, .expert_dim = kBenchWidth, .num_experts = kBenchExperts};
  layer.gate = {.top_k = kBenchTopK, .normalization = Normalization::kSum};
  return layer;
}

// The input of every variant. Each expert's weights are in memory of their own, as in a model.
struct Problem {
  LayerSpec layer = Qwen3Layer();
  HostMatrix rows = RandomBf16(kBenchRows, kBenchDim, 1);
  HostMatrix output = HostMatrix::Allocate(DType::kBF16, kBenchRows, kBenchDim);
  std::unique_ptr<Gate> gate;
  Routing routing;
  Placement placement = Placement::Even(kBenchExperts, 1);
  StepPlan plan;
  std::unique_ptr<ExpertEngine> engine;

  Problem() {
    RouterWeights router{RandomBf16(kBenchExperts, kBenchDim, 2)};
    gate = OrDie(Gate::Create(layer, 0, router));
    RouteAndPlan();
    engine = OrDie(CreateCpuEngine({.compute_dtype = DType::kBF16, .compile_at_load = true}));
    OrDie(engine->AddLayer(layer, kBenchExperts));
    for (int e = 0; e < kBenchExperts; ++e) LoadExpert(e);
  }

  void LoadExpert(int expert_idx) {
    const HostMatrix up = RandomBf16(kBenchWidth, kBenchDim, 10 + expert_idx),
                     gate_proj = RandomBf16(kBenchWidth, kBenchDim, 200 + expert_idx);
    const HostMatrix down = RandomBf16(kBenchDim, kBenchWidth, 400 + expert_idx);
    ExpertWeights weights{.up = {up.view()}, .gate = {gate_proj.view()}, .down = {down.view()}};
    OrDie(engine->LoadExpert(LayerId{0}, expert_idx, weights));
  }

  void RouteAndPlan() {
    routing.Resize(kBenchRows, kBenchTopK);
    OrDie(gate->Route(rows.view(), 0, 0, &routing, nullptr));
    plan = PlanStep(routing, placement, HomeOffsets(kBenchRows, 1));
  }

  MatrixView Scratch(ExpertEngine::Scratch purpose) {
    MatrixView view{nullptr, DType::kBF16, kBenchRows, kBenchDim};
    view.data = OrDie(engine->ScratchBytes(purpose, view.size_bytes()));
    return view;
  }

  void RunStep() {
    const RankPlanView view = plan.ranks[0].view();
    const MatrixView send = Scratch(ExpertEngine::Scratch::kSend);
    const MatrixView partial = Scratch(ExpertEngine::Scratch::kPartial);
    OrDie(engine->GatherSendRows(view, rows.view(), send));
    OrDie(engine->RunExperts(LayerId{0}, view, send, partial));
    OrDie(engine->Combine(view, partial, output.view()));
  }
};

Problem& TheProblem() {
  static Problem& problem = *new Problem;
  return problem;
}

BareOneDnn& TheLibrary() {
  static BareOneDnn& library = *new BareOneDnn(TheProblem().plan.rows_per_expert);
  return library;
}

// Floating-point operations of a step's GEMMs per second.
benchmark::Counter Flops() {
  constexpr double kFlopsPerStep = 2.0 * 3 * kBenchDim * kBenchWidth * kBenchRows * kBenchTopK;
  return benchmark::Counter(kFlopsPerStep, benchmark::Counter::kIsIterationInvariantRate);
}

void OneDnnAlone(benchmark::State& state) {
  BareOneDnn& library = TheLibrary();
  for (auto _ : state) library.Run();
  state.counters["flops"] = Flops();
}
BENCHMARK(OneDnnAlone)->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(3);

void EngineStep(benchmark::State& state) {
  Problem& problem = TheProblem();
  for (auto _ : state) problem.RunStep();
  state.counters["flops"] = Flops();
}
BENCHMARK(EngineStep)->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(3);

void GateAndPlan(benchmark::State& state) {
  Problem& problem = TheProblem();
  for (auto _ : state) problem.RouteAndPlan();
}
BENCHMARK(GateAndPlan)->UseRealTime()->Unit(benchmark::kMillisecond);

void Ratios(benchmark::State& state) {
  Problem& problem = TheProblem();
  BareOneDnn& library = TheLibrary();
  double library_s = INFINITY, engine_s = INFINITY, gate_plan_s = INFINITY;
  for (auto _ : state) {
    library_s = std::min(library_s, Seconds([&] { library.Run(); }));
    gate_plan_s = std::min(gate_plan_s, Seconds([&] { problem.RouteAndPlan(); }));
    engine_s = std::min(engine_s, Seconds([&] { problem.RunStep(); }));
  }
  state.counters["onednn_ms"] = library_s * 1e3;
  state.counters["engine_ms"] = engine_s * 1e3;
  state.counters["gate_plan_ms"] = gate_plan_s * 1e3;
  state.counters["engine_vs_onednn"] = library_s / engine_s;
  state.counters["gate_plan_share"] = gate_plan_s / engine_s;
}
BENCHMARK(Ratios)->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(6);

// The top-k alone, on logits computed beforehand.
void SelectExpertsOnly(benchmark::State& state) {
  GateSpec gate{.top_k = kBenchTopK, .normalization = state.range(0) != 0 ? Normalization::kSum : Normalization::kNone};
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kBenchRows * kBenchExperts);
  for (float& logit : logits) logit = normal(random);
  Routing routing;
  routing.Resize(kBenchRows, kBenchTopK);
  const LogitRows logit_rows{logits.data(), kBenchRows, kBenchExperts, kBenchExperts};
  for (auto _ : state) SelectExperts(gate, {}, logit_rows, 0, &routing);
}
BENCHMARK(SelectExpertsOnly)->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
