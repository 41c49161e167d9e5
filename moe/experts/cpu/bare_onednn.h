// The baseline for benchmarks: the GEMMs of one MoE layer called directly in oneDNN, on packed bf16 weights. Gate and
// up are one product, nothing is fused and no rows are moved. The layer has the size of Qwen3-30B-A3B's. Each expert
// has its own weights in memory, as in a model. A failure ends the program; oneDNN's exceptions are not caught.
//
// Thread-safety: one thread at a time; oneDNN itself uses every core.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/tensor/buffer.h"
#include "dnnl.hpp"

namespace switchyard {

// Sizes of the measured step: rows, hidden dimension, width of an expert, experts and choices per row.
inline constexpr int64_t kBenchRows = 1024, kBenchDim = 2048, kBenchWidth = 768;
inline constexpr int kBenchExperts = 128, kBenchTopK = 8;

inline void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << std::endl;
  std::exit(1);
}

template <typename T>
T OrDie(absl::StatusOr<T> result) {
  OrDie(result.status());
  return *std::move(result);
}

// Wall-clock seconds that work() takes.
double Seconds(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Fills with bf16 values of ordinary size and both signs: the sign and the seven mantissa bits are random, and the
// exponent varies a little.
void FillRandom(HostBuffer* buffer, uint64_t seed);
HostMatrix RandomBf16(int64_t num_rows, int64_t num_cols, uint64_t seed);

class BareOneDnn {
 public:
  // `rows_per_expert` has kBenchExperts counts, not all zero.
  explicit BareOneDnn(std::vector<int64_t> rows_per_expert);

  // Runs all products of one step.
  void Run();

 private:
  using Desc = dnnl::memory::desc;
  struct Pair {
    dnnl::matmul gate_up, down;
  };

  Desc WeightsDesc(int64_t k, int64_t n) const;
  dnnl::matmul Make(int64_t m, int64_t k, int64_t n, const Desc& weights) const;
  Pair MakePair(int64_t m) const;
  void Execute(const dnnl::matmul& primitive, const Desc& weights_desc, HostMatrix& x, HostBuffer& weights,
               HostMatrix& y, int64_t m, int64_t k, int64_t n);

  const std::vector<int64_t> counts_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  Desc gate_up_desc_, down_desc_;
  HostMatrix x_, inner_, y_;
  std::vector<HostBuffer> gate_up_, down_;
  std::map<int64_t, Pair> primitives_;
};

}  // namespace switchyard
