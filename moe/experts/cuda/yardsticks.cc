#include "moe/experts/cuda/yardsticks.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <numeric>

#include "base/tensor/buffer.h"
#include "moe/gpu/cuda_status.h"
#include "moe/weights/synthetic_values.h"

namespace switchyard {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int kMinRepetitions = 5;
constexpr int kMaxRepetitions = 5000;
constexpr auto kLongestHold = std::chrono::milliseconds(50);
constexpr int64_t kBf16 = 2;  // bytes

void OrDie(cudaError_t error, const char* call) { switchyard::OrDie(CudaStatus(error, call)); }

void OrDie(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  switchyard::OrDie(absl::InternalError(absl::StrCat(call, ": ", cublasGetStatusString(status))));
}

double MillisecondsSince(SteadyClock::time_point begin) {
  return std::chrono::duration<double, std::milli>(SteadyClock::now() - begin).count();
}

double GemmTflops(DenseGemm* gemm, StreamTimer* timer, int64_t m, int64_t n, int64_t k, double min_time_ms) {
  const DeviceBuffer x = RandomDeviceBf16(m * k), w = RandomDeviceBf16(n * k);
  const DeviceBuffer y = OrDie(DeviceBuffer::Allocate(m * n * kBf16));
  const double us = timer->MedianUs(min_time_ms, [&](int) { gemm->Run(x.data(), k, w.data(), y.data(), m, n, k); });
  return 2e-6 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / us;
}

// Bytes per microsecond of a copy.
double CopyRate(StreamTimer* timer, cudaStream_t stream, std::byte* to, const std::byte* from, size_t num_bytes,
                double min_time_ms) {
  const double us = timer->MedianUs(min_time_ms, [&](int) {
    OrDie(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
  });
  return static_cast<double>(num_bytes) / us;
}

}  // namespace

void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << std::endl;
  std::exit(1);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return 0.5 * (values[(values.size() - 1) / 2] + values[values.size() / 2]);
}

StreamTimer::StreamTimer(cudaStream_t stream)
    : stream_(stream),
      begin_(switchyard::OrDie(CudaEvent::Create(/*timed=*/true))),
      end_(switchyard::OrDie(CudaEvent::Create(/*timed=*/true))) {}

void StreamTimer::WaitUntilOpen(void* timer) {
  const auto& open = static_cast<StreamTimer*>(timer)->open_;
  const auto deadline = SteadyClock::now() + kLongestHold;
  while (!open.load(std::memory_order_acquire) && SteadyClock::now() < deadline) {
  }
}

double StreamTimer::TimeUs(const std::function<void()>& enqueue) {
  open_ = false;
  OrDie(cudaLaunchHostFunc(stream_, WaitUntilOpen, this), "cudaLaunchHostFunc");
  OrDie(cudaEventRecord(begin_.get(), stream_), "cudaEventRecord");
  enqueue();
  OrDie(cudaEventRecord(end_.get(), stream_), "cudaEventRecord");
  open_.store(true, std::memory_order_release);
  OrDie(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");
  float ms = 0;
  OrDie(cudaEventElapsedTime(&ms, begin_.get(), end_.get()), "cudaEventElapsedTime");
  return 1e3 * ms;
}

double StreamTimer::MedianUs(double min_time_ms, const std::function<void(int)>& enqueue) {
  TimeUs([&] { enqueue(0); });
  std::vector<double> times;
  const auto begin = SteadyClock::now();
  for (int i = 0; i < kMaxRepetitions && (i < kMinRepetitions || MillisecondsSince(begin) < min_time_ms); ++i) {
    times.push_back(TimeUs([&] { enqueue(i); }));
  }
  return Median(std::move(times));
}

DenseGemm::DenseGemm(cudaStream_t stream) {
  OrDie(cublasCreate(&handle_), "cublasCreate");
  OrDie(cublasSetStream(handle_, stream), "cublasSetStream");
}

DenseGemm::~DenseGemm() { cublasDestroy(handle_); }

// cuBLAS is column-major, so it computes yᵀ [n, m] = w · xᵀ.
void DenseGemm::Run(const std::byte* x, int64_t x_stride, const std::byte* w, std::byte* y, int64_t m, int64_t n,
                    int64_t k) {
  const float one = 1, zero = 0;
  const auto as_int = [](int64_t value) { return static_cast<int>(value); };
  OrDie(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, as_int(n), as_int(m), as_int(k), &one, w, CUDA_R_16BF,
                     as_int(k), x, CUDA_R_16BF, as_int(x_stride), &zero, y, CUDA_R_16BF, as_int(n), CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
}

DeviceBuffer RandomDeviceBf16(int64_t num_elements) {
  // A few million random values, repeated.
  const int64_t num_random = std::min<int64_t>(num_elements, (8 << 20) + 4099);
  HostMatrix random = HostMatrix::Allocate(DType::kBF16, 1, num_random);
  FillUniform(MixBits(num_elements), std::sqrt(3.0f), random.view());
  DeviceBuffer buffer = OrDie(DeviceBuffer::Allocate(num_elements * kBf16));
  OrDie(cudaMemcpy(buffer.data(), random.buffer.data(), num_random * kBf16, cudaMemcpyDefault), "cudaMemcpy");
  for (int64_t filled = num_random; filled < num_elements;) {
    const int64_t count = std::min(filled, num_elements - filled);
    OrDie(cudaMemcpy(buffer.data() + filled * kBf16, buffer.data(), count * kBf16, cudaMemcpyDefault), "cudaMemcpy");
    filled += count;
  }
  // Copies within the device return before they are done, and our own streams would not wait for them.
  OrDie(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return buffer;
}

Ceilings MeasureCeilings(double min_time_ms) {
  const CudaStream stream = OrDie(CudaStream::Create());
  StreamTimer timer(stream.get());
  DenseGemm gemm(stream.get());
  Ceilings ceilings;
  constexpr int64_t kSizes[][3] = {{8192, 8192, 8192}, {16384, 8192, 8192}, {8192, 28672, 4096}, {16384, 16384, 8192}};
  for (const auto& [m, n, k] : kSizes) {
    ceilings.tflops = std::max(ceilings.tflops, GemmTflops(&gemm, &timer, m, n, k, min_time_ms));
  }
  constexpr size_t kCopyBytes = size_t{2} << 30, kHostBytes = size_t{256} << 20;
  const DeviceBuffer from = RandomDeviceBf16(kCopyBytes / kBf16), to = OrDie(DeviceBuffer::Allocate(kCopyBytes));
  const PinnedBuffer host = OrDie(PinnedBuffer::Allocate(kHostBytes));
  ceilings.copy_tb_s = 2e-6 * CopyRate(&timer, stream.get(), to.data(), from.data(), kCopyBytes, min_time_ms);
  ceilings.d2h_gb_s = 1e-3 * CopyRate(&timer, stream.get(), host.data(), from.data(), kHostBytes, min_time_ms);
  ceilings.h2d_gb_s = 1e-3 * CopyRate(&timer, stream.get(), to.data(), host.data(), kHostBytes, min_time_ms);
  return ceilings;
}

double DenseFfnUs(const LayerSpec& layer, int64_t num_pairs, double min_time_ms) {
  const int64_t dim = layer.hidden_dim, width = layer.expert_dim, up_width = (layer.expert.gated ? 2 : 1) * width;
  const CudaStream stream = OrDie(CudaStream::Create());
  StreamTimer timer(stream.get());
  DenseGemm gemm(stream.get());
  const DeviceBuffer x = RandomDeviceBf16(num_pairs * dim), up = RandomDeviceBf16(up_width * dim),
                     down = RandomDeviceBf16(width * dim);
  const DeviceBuffer inner = OrDie(DeviceBuffer::Allocate(num_pairs * up_width * kBf16)),
                     y = OrDie(DeviceBuffer::Allocate(num_pairs * dim * kBf16));
  return timer.MedianUs(min_time_ms, [&](int) {
    gemm.Run(x.data(), dim, up.data(), inner.data(), num_pairs, up_width, dim);
    gemm.Run(inner.data(), up_width, down.data(), y.data(), num_pairs, dim, width);
  });
}

}  // namespace switchyard
