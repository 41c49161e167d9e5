#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "moe/experts/cuda/kernels/layouts.h"
#include "moe/experts/cuda/kernels/pack_weights.h"
#include "moe/gpu/cuda_status.h"

namespace switchyard {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;  // inputs that one thread places: 16 bytes of 16-bit elements

__device__ int64_t PackedRow(int64_t output, RowPlace place, int64_t first_row) {
  return place == RowPlace::kPlain ? first_row + output : InterleavedRow(output, place == RowPlace::kUp);
}

// Converts through fp32, which holds the values of all types but fp64 exactly. fp64 values are converted directly.
template <typename S, typename T>
__device__ T Convert(S value) {
  if constexpr (std::is_same_v<S, T>) {
    return value;
  } else if constexpr (std::is_same_v<S, double> && !std::is_same_v<T, float>) {
    return static_cast<T>(value);  // rounded once
  } else if constexpr (std::is_same_v<T, double>) {
    return static_cast<double>(static_cast<float>(value));
  } else {
    return static_cast<T>(static_cast<float>(value));
  }
}

template <typename S, typename T>
__global__ void __launch_bounds__(kThreads) PackKernel(SourceRows source, PackTarget target) {
  const S* const data = static_cast<const S*>(source.data);
  T* const weights = static_cast<T*>(target.weights);
  const int64_t num_outputs = source.transposed ? source.num_cols : source.num_rows;
  const int64_t num_inputs = source.transposed ? source.num_rows : source.num_cols;
  const int64_t num_runs = (num_inputs + kRun - 1) / kRun;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < num_outputs * num_runs; i += stride) {
    // Neighbouring threads read neighbouring elements of the source.
    const int64_t output = source.transposed ? i % num_outputs : i / num_runs;
    const int64_t input = (source.transposed ? i / num_outputs : i % num_runs) * kRun;
    const int64_t row =
        PackedRow(source.transposed ? output : source.first_row + output, target.place, target.first_row);
    const int64_t col = source.transposed ? source.first_row + input : input;
    T* const to = weights + (target.k_blocks > 0 ? PackedOffset(row, col, target.k_blocks) : row * target.pitch + col);
    const int count = static_cast<int>(min(static_cast<int64_t>(kRun), num_inputs - input));
    for (int j = 0; j < count; ++j) {
      to[j] = Convert<S, T>(source.transposed ? data[(input + j) * num_outputs + output]
                                              : data[output * num_inputs + input + j]);
    }
  }
}

template <typename S, typename T>
__global__ void __launch_bounds__(kThreads)
    PackBiasKernel(const S* bias, int64_t num_outputs, RowPlace place, int64_t first_row, T* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i < num_outputs) out[PackedRow(i, place, first_row)] = Convert<S, T>(bias[i]);
}

// Calls body with a value of the C++ type that `dtype` names.
template <typename Body>
void WithType(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF64:
      return body(double{});
    case DType::kF32:
      return body(float{});
    case DType::kF16:
      return body(__half{});
    case DType::kBF16:
      return body(__nv_bfloat16{});
  }
}

}  // namespace

absl::Status PackRows(const SourceRows& source, const PackTarget& target, cudaStream_t stream) {
  const int64_t num_runs = source.num_rows * CeilDiv(source.num_cols, kRun) + source.num_cols;
  const int num_blocks = static_cast<int>(std::clamp<int64_t>(CeilDiv(num_runs, kThreads), 1, 4096));
  WithType(source.dtype, [&](auto from) {
    WithType(target.dtype, [&](auto to) {
      PackKernel<decltype(from), decltype(to)><<<num_blocks, kThreads, 0, stream>>>(source, target);
    });
  });
  SY_CUDA(cudaGetLastError());
  return absl::OkStatus();
}

absl::Status PackBias(DType dtype, const void* bias, int64_t num_outputs, RowPlace place, int64_t first_row,
                      DType out_dtype, void* out, cudaStream_t stream) {
  const int num_blocks = static_cast<int>(CeilDiv(num_outputs, kThreads));
  WithType(dtype, [&](auto from) {
    using S = decltype(from);
    const S* const in = static_cast<const S*>(bias);
    if (out_dtype == DType::kF64) {
      PackBiasKernel<<<num_blocks, kThreads, 0, stream>>>(in, num_outputs, place, first_row, static_cast<double*>(out));
    } else {
      PackBiasKernel<<<num_blocks, kThreads, 0, stream>>>(in, num_outputs, place, first_row, static_cast<float*>(out));
    }
  });
  SY_CUDA(cudaGetLastError());
  return absl::OkStatus();
}

}  // namespace switchyard
