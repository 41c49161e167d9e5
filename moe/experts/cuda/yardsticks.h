// Baselines for benchmarks of the CUDA engine, measured in the same process: the GPU's GEMM rate, its copy rate, and a
// dense FFN with as many operations called directly in cuBLAS; and a timer for work on a stream. Failures of CUDA or
// cuBLAS end the program.
//
// Thread-safety: one thread at a time.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/status.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/stream.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

void OrDie(const absl::Status& status);

template <typename T>
T OrDie(absl::StatusOr<T> result) {
  OrDie(result.status());
  return *std::move(result);
}

// `values` must not be empty.
double Median(std::vector<double> values);

// Times work on a stream without the time that the host takes to enqueue it: the stream is held back until all work is
// enqueued, so that the GPU never waits for the host.
class StreamTimer {
 public:
  explicit StreamTimer(cudaStream_t stream);

  // Microseconds that the work of `enqueue` takes on the stream, which must be idle before. `enqueue` must not wait for
  // the stream; if it does, the measured time is too long but nothing hangs.
  double TimeUs(const std::function<void()>& enqueue);

  // Median over repetitions: at least 5, and until `min_time_ms` has passed, but at most 5000. `enqueue(i)` is
  // repetition i. An untimed enqueue(0) comes first.
  double MedianUs(double min_time_ms, const std::function<void(int)>& enqueue);

 private:
  static void WaitUntilOpen(void* timer);

  const cudaStream_t stream_;
  CudaEvent begin_, end_;
  std::atomic<bool> open_ = true;
};

// Row-major products with cuBLAS: y [m, n] = x [m, k] · w [n, k]ᵀ, all bf16 with fp32 accumulation.
// `x_stride` is the distance in elements between rows of x.
class DenseGemm {
 public:
  explicit DenseGemm(cudaStream_t stream);
  ~DenseGemm();
  DenseGemm(const DenseGemm&) = delete;
  DenseGemm& operator=(const DenseGemm&) = delete;

  void Run(const std::byte* x, int64_t x_stride, const std::byte* w, std::byte* y, int64_t m, int64_t n, int64_t k);

 private:
  cublasHandle_t handle_ = nullptr;
};

// Device memory filled with random bf16 values (not all zero), which depend on the size alone.
DeviceBuffer RandomDeviceBf16(int64_t num_elements);

struct Ceilings {
  double tflops = 0;     // TFLOP/s, the best of a few large bf16 GEMMs
  double copy_tb_s = 0;  // TB/s of a large copy within device memory, bytes read plus bytes written
  double h2d_gb_s = 0;   // GB/s from page-locked host memory to the device
  double d2h_gb_s = 0;
};

Ceilings MeasureCeilings(double min_time_ms);

// Microseconds of one dense FFN: `num_pairs` rows times one expert's weights, with gate and up as one product and no
// activation.
double DenseFfnUs(const LayerSpec& layer, int64_t num_pairs, double min_time_ms);

}  // namespace switchyard
