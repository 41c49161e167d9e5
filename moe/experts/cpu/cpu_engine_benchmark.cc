// How close the engine comes to the library it stands on, for one layer of the size of Qwen3-30B-A3B's in bf16: 1024
// rows of width 2048, 128 experts of width 768, top-8.
//
//   OneDnnAlone   the step's GEMMs as bare primitives on packed weights: gate and up as one product, nothing fused, no
//                 rows moved
//   EngineStep    GatherSendRows, RunExperts and Combine of a single rank
//   GateAndPlan   router, top-k and PlanStep of the same rows
//   Ratios        the three in turn, the fastest time of each, as other work on the host only slows: engine_vs_onednn
//   is
//                 the engine's speed relative to the library alone, gate_plan_share the time of gate and plan relative
//                 to the engine's step
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "moe/experts/cpu/cpu_engine.h"
#include "moe/gating/gate.h"
#include "moe/linear/dnnl_status.h"
#include "moe/plan/step_plan.h"
#include "moe/tensor/float16.h"

namespace switchyard {
namespace {

constexpr int64_t kRows = 1024, kDim = 2048, kWidth = 768;
constexpr int kExperts = 128, kTopK = 8;

LayerSpec Qwen3Layer() {
  LayerSpec layer{.name = "0", .hidden_dim = kDim, .expert_dim = kWidth, .num_experts = kExperts};
  layer.gate = {.top_k = kTopK, .renormalize = true};
  return layer;
}

void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T OrDie(absl::StatusOr<T> result) {
  OrDie(result.status());
  return *std::move(result);
}

// Normally sized values of both signs: sign, seven mantissa bits and a few exponents are random.
void FillRandom(HostBuffer* buffer, uint64_t seed) {
  auto* values = reinterpret_cast<uint16_t*>(buffer->data());
  for (size_t i = 0; i < buffer->size() / 2; ++i) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    values[i] = static_cast<uint16_t>(0x3c00 | (seed & 0x81ff));
  }
}

HostMatrix RandomBf16(int64_t num_rows, int64_t num_cols, uint64_t seed) {
  HostMatrix matrix = HostMatrix::Allocate(DType::kBF16, num_rows, num_cols);
  FillRandom(&matrix.buffer, seed);
  return matrix;
}

// What every variant works on. Weights of all experts are different memory, as in a model.
struct Problem {
  LayerSpec layer = Qwen3Layer();
  HostMatrix rows = RandomBf16(kRows, kDim, 1);
  HostMatrix output = HostMatrix::Allocate(DType::kBF16, kRows, kDim);
  std::unique_ptr<Gate> gate;
  Routing routing;
  Placement placement = Placement::Even(kExperts, 1);
  StepPlan plan;
  std::unique_ptr<ExpertEngine> engine;

  Problem() {
    RouterWeights router{RandomBf16(kExperts, kDim, 2)};
    gate = OrDie(Gate::Create(layer, router));
    RouteAndPlan();
    engine = OrDie(CreateCpuEngine({.compute_dtype = DType::kBF16, .compile_at_load = true}));
    OrDie(engine->AddLayer(layer, kExperts));
    for (int e = 0; e < kExperts; ++e) LoadExpert(e);
  }

  void LoadExpert(int expert_idx) {
    const HostMatrix up = RandomBf16(kWidth, kDim, 10 + expert_idx),
                     gate_proj = RandomBf16(kWidth, kDim, 200 + expert_idx);
    const HostMatrix down = RandomBf16(kDim, kWidth, 400 + expert_idx);
    ExpertWeights weights{.up = {up.view()}, .gate = {gate_proj.view()}, .down = {down.view()}};
    OrDie(engine->LoadExpert(LayerId{0}, expert_idx, weights));
  }

  void RouteAndPlan() {
    routing.Resize(kRows, kTopK);
    OrDie(gate->Route(rows.view(), 0, &routing));
    plan = PlanStep(routing, placement, HomeOffsets(kRows, 1));
  }

  MatrixView Scratch(ExpertEngine::Scratch purpose) {
    MatrixView view{nullptr, DType::kBF16, kRows, kDim};
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

// The same products straight through the library.
class OneDnn {
 public:
  explicit OneDnn(std::vector<int64_t> rows_per_expert)
      : counts_(std::move(rows_per_expert)), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    gate_up_desc_ = WeightsDesc(kDim, 2 * kWidth);
    down_desc_ = WeightsDesc(kWidth, kDim);
    const int64_t most = *std::max_element(counts_.begin(), counts_.end());
    x_ = RandomBf16(most, kDim, 3), inner_ = RandomBf16(most, 2 * kWidth, 4), y_ = RandomBf16(most, kDim, 5);
    for (int e = 0; e < kExperts; ++e) {
      gate_up_.push_back(Weights(gate_up_desc_, e));
      down_.push_back(Weights(down_desc_, 1000 + e));
      primitives_.try_emplace(counts_[e], counts_[e] > 0 ? MakePair(counts_[e]) : Pair{});
    }
  }

  void Run() {
    for (int e = 0; e < kExperts; ++e) {
      if (counts_[e] == 0) continue;
      const Pair& pair = primitives_.at(counts_[e]);
      Execute(pair.gate_up, gate_up_desc_, x_, gate_up_[e], inner_, counts_[e], kDim, 2 * kWidth);
      Execute(pair.down, down_desc_, inner_, down_[e], y_, counts_[e], kWidth, kDim);
    }
  }

 private:
  using Desc = dnnl::memory::desc;
  struct Pair {
    dnnl::matmul gate_up, down;
  };

  static Desc Rows(int64_t num_rows, int64_t num_cols) {
    return Desc({num_rows, num_cols}, dnnl::memory::data_type::bf16, dnnl::memory::format_tag::ab);
  }

  Desc WeightsDesc(int64_t k, int64_t n) const {
    const Desc any({k, n}, dnnl::memory::data_type::bf16, dnnl::memory::format_tag::any);
    const dnnl::matmul::desc product(Rows(64, k), any, Rows(64, n));
    return dnnl::matmul::primitive_desc(product, engine_).weights_desc();
  }

  static HostBuffer Weights(const Desc& desc, uint64_t seed) {
    HostBuffer buffer(desc.get_size());
    FillRandom(&buffer, seed + 7);
    return buffer;
  }

  dnnl::matmul Make(int64_t m, int64_t k, int64_t n, const Desc& weights) const {
    const dnnl::matmul::desc product(Rows(m, k), weights, Rows(m, n));
    return dnnl::matmul(dnnl::matmul::primitive_desc(product, engine_));
  }

  Pair MakePair(int64_t m) const {
    return {Make(m, kDim, 2 * kWidth, gate_up_desc_), Make(m, kWidth, kDim, down_desc_)};
  }

  void Execute(const dnnl::matmul& primitive, const Desc& weights_desc, HostMatrix& x, HostBuffer& weights,
               HostMatrix& y, int64_t m, int64_t k, int64_t n) {
    primitive.execute(stream_, {{DNNL_ARG_SRC, dnnl::memory(Rows(m, k), engine_, x.buffer.data())},
                                {DNNL_ARG_WEIGHTS, dnnl::memory(weights_desc, engine_, weights.data())},
                                {DNNL_ARG_DST, dnnl::memory(Rows(m, n), engine_, y.buffer.data())}});
  }

  const std::vector<int64_t> counts_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  Desc gate_up_desc_, down_desc_;
  HostMatrix x_, inner_, y_;
  std::vector<HostBuffer> gate_up_, down_;
  std::map<int64_t, Pair> primitives_;
};

Problem& TheProblem() {
  static Problem& problem = *new Problem;
  return problem;
}

OneDnn& TheLibrary() {
  static OneDnn& library = *new OneDnn(TheProblem().plan.rows_per_expert);
  return library;
}

double Seconds(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Floating-point operations of a step's GEMMs per second.
benchmark::Counter Flops() {
  constexpr double kFlopsPerStep = 2.0 * 3 * kDim * kWidth * kRows * kTopK;
  return benchmark::Counter(kFlopsPerStep, benchmark::Counter::kIsIterationInvariantRate);
}

void OneDnnAlone(benchmark::State& state) {
  OneDnn& library = TheLibrary();
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
  OneDnn& library = TheLibrary();
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

// The top-k alone, on logits that are there already.
void SelectExpertsOnly(benchmark::State& state) {
  GateSpec gate{.top_k = kTopK, .renormalize = state.range(0) != 0};
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kRows * kExperts);
  for (float& logit : logits) logit = normal(random);
  Routing routing;
  routing.Resize(kRows, kTopK);
  for (auto _ : state) SelectExperts(gate, logits.data(), kRows, kExperts, 0, &routing);
}
BENCHMARK(SelectExpertsOnly)->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
