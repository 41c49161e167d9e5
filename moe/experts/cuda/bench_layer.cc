#include "moe/experts/cuda/bench_layer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <random>
#include <thread>

#include "moe/experts/reference.h"
#include "moe/weights/synthetic_values.h"

namespace switchyard {
namespace {

constexpr int kWeightSets = 2;
constexpr double kTolerance = 1e-2;

LayerSpec Layer(int64_t dim, int64_t width, int num_experts, int top_k, ExpertSpec expert = {}) {
  LayerSpec spec{.name = "0", .hidden_dim = dim, .expert_dim = width, .num_experts = num_experts, .expert = expert};
  spec.gate = {.top_k = top_k, .normalization = Normalization::kSum};
  return spec;
}

}  // namespace

const std::vector<BenchShape>& BenchShapes() {
  static const auto& shapes = *new std::vector<BenchShape>{
      {"mixtral", "Mixtral 8x7B", Layer(4096, 14336, 8, 2), {1, 16, 128, 512, 1024, 4096, 8192, 32768}},
      {"qwen3", "Qwen3-30B-A3B", Layer(2048, 768, 128, 8), {1, 16, 128, 512, 1024, 4096, 8192, 32768}},
      {"deepseek", "DeepSeek-V3", Layer(7168, 2048, 256, 8), {1, 16, 128, 512, 1024, 4096, 8192, 32768}},
      {"tutel",
       "Tutel helloworld",
       Layer(2048, 2048, 2, 2, {Activation::kRelu, /*gated=*/false, /*biased=*/true}),
       {1, 16, 128, 512, 1024, 4096, 8192, 16384, 32768, 131072}}};
  return shapes;
}

HostMatrix RandomBf16(int64_t num_rows, int64_t num_cols, double scale, uint64_t key) {
  HostMatrix matrix = HostMatrix::Allocate(DType::kBF16, num_rows, num_cols);
  FillUniform(MixBits(key), static_cast<float>(scale * std::sqrt(3.0)), matrix.view());
  return matrix;
}

Routing UniformRouting(int64_t num_rows, int top_k, int num_experts, uint32_t seed) {
  std::mt19937 random(seed);
  Routing routing;
  routing.Resize(num_rows, top_k);
  std::vector<int32_t> experts(num_experts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    float sum = 0;
    for (int j = 0; j < top_k; ++j) {
      std::swap(experts[j], experts[j + random() % (num_experts - j)]);
      routing.expert_idx[row_idx * top_k + j] = experts[j];
      sum += routing.weight[row_idx * top_k + j] = 0.1f + static_cast<float>(random() % 1024) / 1024;
    }
    for (int j = 0; j < top_k; ++j) routing.weight[row_idx * top_k + j] /= sum;
  }
  return routing;
}

BenchWeights::BenchWeights(const LayerSpec& spec) : spec_(spec) {
  const int64_t dim = spec.hidden_dim, width = spec.expert_dim;
  const double up_scale = 1 / std::sqrt(dim), down_scale = 1 / std::sqrt(width);
  for (int i = 0; i < kWeightSets; ++i) {
    const uint64_t key = 100 * (i + 1);
    Set set{.up = RandomBf16(width, dim, up_scale, key), .down = RandomBf16(dim, width, down_scale, key + 1)};
    if (spec.expert.gated) set.gate = RandomBf16(width, dim, up_scale, key + 2);
    if (spec.expert.biased) {
      set.up_bias = RandomBf16(1, width, 0.5, key + 3);
      if (spec.expert.gated) set.gate_bias = RandomBf16(1, width, 0.5, key + 5);
      set.down_bias = RandomBf16(1, dim, 0.5, key + 4);
    }
    sets_.push_back(std::move(set));
  }
}

ExpertWeights BenchWeights::Expert(int expert_idx) const {
  const Set& set = sets_[expert_idx % kWeightSets];
  ExpertWeights weights{.up = {set.up.view()}, .down = {set.down.view()}};
  if (spec_.expert.gated) weights.gate = {set.gate.view()};
  if (spec_.expert.biased) weights.up_bias = set.up_bias.view(), weights.down_bias = set.down_bias.view();
  if (spec_.expert.biased && spec_.expert.gated) weights.gate_bias = set.gate_bias.view();
  return weights;
}

void BenchWeights::LoadInto(ExpertEngine* engine, const std::vector<int>& experts) const {
  std::atomic<int> next_slot = 0;
  const auto load = [&] {
    for (int slot = next_slot++; slot < static_cast<int>(experts.size()); slot = next_slot++) {
      if (absl::Status loaded = engine->LoadExpert(LayerId{0}, slot, Expert(experts[slot])); !loaded.ok()) {
        std::cerr << loaded << std::endl;
        std::exit(1);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < engine->load_threads(); ++i) threads.emplace_back(load);
  load();
  for (std::thread& thread : threads) thread.join();
}

std::vector<double> BenchWeights::Reference(ConstMatrixView rows, Routing routing) const {
  for (int32_t& expert : routing.expert_idx) expert %= kWeightSets;
  std::vector<ExpertWeights> experts;
  for (int i = 0; i < kWeightSets; ++i) experts.push_back(Expert(i));
  return ReferenceExperts(spec_, experts, rows, routing);
}

double CheckedError(ConstMatrixView output, const std::vector<double>& expected, const std::string& what) {
  const int64_t num_rows = std::min<int64_t>(output.num_rows, expected.size() / output.num_cols);
  const std::vector<double> got = ToDoubles(output.Rows(0, num_rows));
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const double error = std::sqrt(difference / norm);
  if (error <= kTolerance) return error;  // false for NaN
  std::cerr << what << ": the first rows differ from the reference by " << error << " of their norm, expected at most "
            << kTolerance << std::endl;
  std::exit(1);
}

}  // namespace switchyard
