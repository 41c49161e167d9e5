// Compares the CUDA engine with the limits of the GPU that it runs on, for the layers of four well-known models in
// bf16, all experts on one GPU:
//
//   step    from rows on the device to combined rows on the device: GPU time of RunExperts on a single rank, including
//           the upload of the plan's tables; the median of steps that run one at a time
//   loop    time per step when the same steps follow each other closely, with several in flight
//   whole   from rows in page-locked host memory to rows in host memory, with gating and planning, one step at a time
//   dense   one dense FFN with as many operations through cuBLAS, without activation
//   floor   the larger of two times: the operations at the GPU's GEMM rate, and reading the chosen experts' weights at
//           its copy rate, both rates measured in the same run
//
// Rows, weights and routing are random; steps use several inputs in rotation. For every number of rows, the first
// output rows are compared with the float64 reference. Writes a table to stdout and, with --out, one JSON object per
// line.
#include <cuda_runtime.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/tensor/buffer.h"
#include "moe/experts/cuda/bench_layer.h"
#include "moe/experts/cuda/cuda_engine.h"
#include "moe/experts/cuda/yardsticks.h"
#include "moe/gating/gate.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/stream.h"
#include "moe/plan/step_plan.h"
#include "moe/weights/synthetic_values.h"

namespace switchyard {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int64_t kCheckedRows = 2;
constexpr uint32_t kCheckedSeed = 1;  // seed of the input whose first rows are checked

struct BenchFlags {
  std::vector<std::string> shapes = {"mixtral", "qwen3", "deepseek", "tutel"};
  std::vector<int64_t> rows = {1, 16, 128, 512, 1024, 4096, 8192, 16384, 32768, 131072};
  double min_time_ms = 100;
  bool force_cublas = false;
  std::string out;
};

// One of the inputs that steps use in rotation.
struct StepInput {
  StepPlan plan;
  int64_t first_row = 0;  // in the layer's rows and in its outputs
  int experts_hit = 0;
};

struct Measurement {
  int64_t num_rows = 0;
  double step_us = 0, loop_us = 0, whole_us = 0, dense_us = 0, floor_us = 0, flops = 0, active_bytes = 0, error = 0;
};

// A layer with its engine, and its rows on the host and on the device.
class LayerBenchmark {
 public:
  LayerBenchmark(const BenchShape& shape, int64_t max_rows, const BenchFlags& flags)
      : spec_(shape.spec), flags_(flags), max_rows_(max_rows), weights_(shape.spec) {
    engine_ = OrDie(CreateCudaEngine(OrDie(OpenCudaDevice({})),
                                     {.compute_dtype = DType::kBF16, .force_cublas = flags.force_cublas}));
    OrDie(engine_->AddLayer(spec_, spec_.num_experts));
    OrDie(engine_->Reserve(max_rows));
    std::vector<int> experts(spec_.num_experts);
    std::iota(experts.begin(), experts.end(), 0);
    weights_.LoadInto(engine_.get(), experts);
    MakeRows();
    gate_ = OrDie(Gate::Create(spec_, 0, RouterWeights{RandomBf16(spec_.num_experts, spec_.hidden_dim, 1, 999)}));
    timer_ = std::make_unique<StreamTimer>(ToCudaStream(engine_->stream()));
  }

  Measurement Measure(int64_t num_rows, const Ceilings& ceilings) {
    Measurement result{.num_rows = num_rows};
    const std::vector<StepInput> inputs = MakeInputs(num_rows);
    const double num_pairs = static_cast<double>(num_rows) * spec_.gate.top_k;
    const int num_matrices = spec_.expert.gated ? 3 : 2;
    result.flops = 2 * num_matrices * num_pairs * static_cast<double>(spec_.hidden_dim * spec_.expert_dim);
    double experts_hit = 0;
    for (const StepInput& input : inputs) experts_hit += input.experts_hit;
    result.active_bytes = experts_hit / static_cast<double>(inputs.size()) * ExpertBytes(spec_, DType::kBF16);
    result.floor_us = std::max(result.flops / ceilings.tflops * 1e-6, result.active_bytes / ceilings.copy_tb_s * 1e-6);

    OneStep(inputs[0]);
    result.error = ErrorOfCheckedRows(num_rows);
    result.step_us = StepUs(inputs);
    result.loop_us = LoopUs(inputs, result.step_us);
    result.whole_us = WholeUs(num_rows);
    result.dense_us = DenseFfnUs(spec_, num_rows * spec_.gate.top_k, flags_.min_time_ms);
    return result;
  }

 private:
  void MakeRows() {
    const size_t num_bytes = max_rows_ * spec_.hidden_dim * SizeOf(DType::kBF16);
    host_rows_ = OrDie(PinnedBuffer::Allocate(num_bytes));
    host_output_ = OrDie(PinnedBuffer::Allocate(num_bytes));
    FillUniform(MixBits(5), std::sqrt(3.0f), Rows(host_rows_.data(), 0, max_rows_));
    device_rows_ = OrDie(DeviceBuffer::Allocate(num_bytes));
    device_output_ = OrDie(DeviceBuffer::Allocate(num_bytes));
    OrDie(CudaStatus(cudaMemcpy(device_rows_.data(), host_rows_.data(), num_bytes, cudaMemcpyDefault), "cudaMemcpy"));
    OrDie(CudaStatus(cudaMemset(device_output_.data(), 0xff, num_bytes), "cudaMemset"));
    OrDie(CudaStatus(cudaDeviceSynchronize(), "cudaDeviceSynchronize"));
  }

  MatrixView Rows(std::byte* base, int64_t first_row, int64_t num_rows) const {
    return MatrixView{base, DType::kBF16, max_rows_, spec_.hidden_dim}.Rows(first_row, num_rows);
  }

  std::vector<StepInput> MakeInputs(int64_t num_rows) const {
    const int num_inputs = num_rows <= 1024 ? 8 : 2;
    std::vector<StepInput> inputs(num_inputs);
    for (int i = 0; i < num_inputs; ++i) {
      const Routing routing = UniformRouting(num_rows, spec_.gate.top_k, spec_.num_experts, kCheckedSeed + i);
      inputs[i].plan = PlanStep(routing, Placement::Even(spec_.num_experts, 1), {0, num_rows});
      inputs[i].first_row = (i + 1) * num_rows <= max_rows_ ? i * num_rows : 0;
      const std::vector<int64_t>& counts = inputs[i].plan.rows_per_expert;
      inputs[i].experts_hit = static_cast<int>(counts.size() - std::count(counts.begin(), counts.end(), 0));
    }
    return inputs;
  }

  // The rows are on the device already, so the lane is told of a step without home rows.
  void BeginOnDevice(int lane) { OrDie(engine_->BeginStep(lane, Rows(nullptr, 0, 0)).status()); }
  void EndOnDevice(int lane) { OrDie(engine_->EndStep(lane, Rows(nullptr, 0, 0), Rows(nullptr, 0, 0))); }

  void Enqueue(const StepInput& input) {
    const RankPlanView plan = input.plan.ranks[0].view();
    OrDie(engine_->RunExperts(LayerId{0}, plan, Rows(device_rows_.data(), input.first_row, plan.num_home_rows),
                              Rows(device_output_.data(), input.first_row, plan.num_home_rows)));
  }

  void OneStep(const StepInput& input) {
    BeginOnDevice(0);
    Enqueue(input);
    EndOnDevice(0);
    OrDie(engine_->WaitStep(0));
  }

  double StepUs(const std::vector<StepInput>& inputs) {
    for (const StepInput& input : inputs) OneStep(input);
    std::vector<double> times;
    const auto begin = SteadyClock::now();
    for (size_t i = 0; i < 5 || ElapsedMs(begin) < flags_.min_time_ms; ++i) {
      BeginOnDevice(0);
      times.push_back(timer_->TimeUs([&] { Enqueue(inputs[i % inputs.size()]); }));
      EndOnDevice(0);
      OrDie(engine_->WaitStep(0));
    }
    return Median(times);
  }

  double LoopUs(const std::vector<StepInput>& inputs, double step_us) {
    const int num_lanes = engine_->num_lanes();
    const int num_steps = std::clamp(static_cast<int>(1e3 * flags_.min_time_ms / step_us), 2 * num_lanes, 2000);
    const auto begin = SteadyClock::now();
    for (int i = 0; i < num_steps; ++i) {
      if (i >= num_lanes) OrDie(engine_->WaitStep(i % num_lanes));
      BeginOnDevice(i % num_lanes);
      Enqueue(inputs[i % inputs.size()]);
      EndOnDevice(i % num_lanes);
    }
    for (int i = num_steps; i < num_steps + num_lanes; ++i) OrDie(engine_->WaitStep(i % num_lanes));
    return 1e3 * ElapsedMs(begin) / num_steps;
  }

  double WholeUs(int64_t num_rows) {
    std::vector<double> times;
    Routing routing;
    const auto begin = SteadyClock::now();
    for (int64_t i = 0; i < 6 || ElapsedMs(begin) < flags_.min_time_ms; ++i) {
      const int64_t first_row = i * num_rows % (max_rows_ - num_rows + 1);
      const auto step_begin = SteadyClock::now();
      WholeStep(Rows(host_rows_.data(), first_row, num_rows), Rows(host_output_.data(), first_row, num_rows), &routing);
      if (i > 0) times.push_back(1e3 * ElapsedMs(step_begin));
    }
    return Median(times);
  }

  void WholeStep(ConstMatrixView rows, MatrixView output, Routing* routing) {
    routing->Resize(rows.num_rows, spec_.num_choices());
    OrDie(gate_->Route(rows, 0, 0, routing, nullptr));
    const StepPlan plan = PlanStep(*routing, Placement::Even(spec_.num_experts, 1), {0, rows.num_rows});
    const ConstMatrixView home = OrDie(engine_->BeginStep(0, rows));
    const MatrixView step_output = OrDie(engine_->StepOutput(0, output));
    OrDie(engine_->RunExperts(LayerId{0}, plan.ranks[0].view(), home, step_output));
    OrDie(engine_->EndStep(0, step_output, output));
    OrDie(engine_->WaitStep(0));
  }

  // The first input begins with the same rows and routing for every number of rows, so one reference serves all.
  double ErrorOfCheckedRows(int64_t num_rows) {
    if (reference_.empty()) {
      reference_ = weights_.Reference(Rows(host_rows_.data(), 0, kCheckedRows),
                                      UniformRouting(kCheckedRows, spec_.gate.top_k, spec_.num_experts, kCheckedSeed));
    }
    HostMatrix output = HostMatrix::Allocate(DType::kBF16, std::min(num_rows, kCheckedRows), spec_.hidden_dim);
    const cudaError_t copied =
        cudaMemcpy(output.buffer.data(), device_output_.data(), output.view().size_bytes(), cudaMemcpyDefault);
    OrDie(CudaStatus(copied, "cudaMemcpy"));
    return CheckedError(std::as_const(output).view(), reference_, absl::StrCat(num_rows, " rows"));
  }

  static double ElapsedMs(SteadyClock::time_point begin) {
    return std::chrono::duration<double, std::milli>(SteadyClock::now() - begin).count();
  }

  const LayerSpec spec_;
  const BenchFlags& flags_;
  const int64_t max_rows_;
  const BenchWeights weights_;
  std::unique_ptr<ExpertEngine> engine_;
  PinnedBuffer host_rows_, host_output_;
  DeviceBuffer device_rows_, device_output_;
  std::unique_ptr<Gate> gate_;
  std::unique_ptr<StreamTimer> timer_;
  std::vector<double> reference_;
};

// Writes JSON lines for scripts and a table for people.
class Report {
 public:
  explicit Report(const std::string& path) {
    if (path.empty()) return;
    file_.open(path, std::ios::trunc);
    if (!file_.good()) OrDie(absl::InvalidArgumentError(absl::StrCat("--out: cannot write '", path, "'")));
  }

  void Add(const Ceilings& ceilings) {
    file_ << absl::StrFormat(
                 "{\"source\":\"ceilings\",\"tflops\":%.1f,\"copy_tb_s\":%.3f,\"h2d_gb_s\":%.1f,"
                 "\"d2h_gb_s\":%.1f}\n",
                 ceilings.tflops, ceilings.copy_tb_s, ceilings.h2d_gb_s, ceilings.d2h_gb_s)
          << std::flush;
    std::cout << absl::StrFormat("GEMM %.0f TFLOP/s, copy %.2f TB/s, host to device %.1f GB/s, back %.1f GB/s\n",
                                 ceilings.tflops, ceilings.copy_tb_s, ceilings.h2d_gb_s, ceilings.d2h_gb_s)
              << absl::StrFormat("%-18s %7s %10s %10s %10s %10s %10s %9s %9s\n", "layer", "rows", "step us", "loop us",
                                 "whole us", "dense us", "floor us", "/dense", "/floor")
              << std::flush;
  }

  void Add(const BenchShape& shape, const Measurement& m) {
    file_ << absl::StrFormat(
                 "{\"source\":\"switchyard\",\"layer\":\"%s\",\"rows\":%d,\"step_us\":%.2f,\"loop_us\":%.2f,"
                 "\"whole_us\":%.2f,\"cublas_dense_us\":%.2f,\"floor_us\":%.2f,\"flops\":%.6g,\"active_bytes\":%.6g,"
                 "\"error\":%.3g}\n",
                 shape.key, m.num_rows, m.step_us, m.loop_us, m.whole_us, m.dense_us, m.floor_us, m.flops,
                 m.active_bytes, m.error)
          << std::flush;
    std::cout << absl::StrFormat("%-18s %7d %10.1f %10.1f %10.1f %10.1f %10.1f %9.2f %9.2f\n", shape.name, m.num_rows,
                                 m.step_us, m.loop_us, m.whole_us, m.dense_us, m.floor_us, m.step_us / m.dense_us,
                                 m.step_us / m.floor_us)
              << std::flush;
  }

 private:
  std::ofstream file_;
};

void Run(const BenchFlags& flags) {
  Report report(flags.out);
  OrDie(OpenCudaDevice({}).status());
  const Ceilings ceilings = MeasureCeilings(flags.min_time_ms);
  report.Add(ceilings);
  for (const BenchShape& shape : BenchShapes()) {
    if (std::count(flags.shapes.begin(), flags.shapes.end(), shape.key) == 0) continue;
    std::vector<int64_t> row_counts;
    for (const int64_t rows : shape.rows) {
      if (std::count(flags.rows.begin(), flags.rows.end(), rows) != 0) row_counts.push_back(rows);
    }
    if (row_counts.empty()) continue;
    LayerBenchmark layer(shape, std::max<int64_t>(row_counts.back(), 8192), flags);
    for (const int64_t num_rows : row_counts) report.Add(shape, layer.Measure(num_rows, ceilings));
  }
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  switchyard::BenchFlags flags;
  CLI::App app("Benchmarks the CUDA engine against the GPU's own limits.");
  app.add_option("--shapes", flags.shapes, "mixtral, qwen3, deepseek, tutel; all of them without the flag")
      ->delimiter(',');
  app.add_option("--rows", flags.rows, "rows per step; of those that the table has for the layer")->delimiter(',');
  app.add_option("--min_time_ms", flags.min_time_ms, "time to repeat each measurement for")->capture_default_str();
  app.add_flag("--force_cublas", flags.force_cublas, "cuBLAS where the engine's own kernels would run");
  app.add_option("--out", flags.out, "file for one JSON object a line");
  CLI11_PARSE(app, argc, argv);
  switchyard::Run(flags);
  return 0;
}
