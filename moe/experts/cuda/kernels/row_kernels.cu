#include <algorithm>
#include <type_traits>

#include "moe/experts/cuda/kernels/activation.cuh"
#include "moe/experts/cuda/kernels/hopper.cuh"
#include "moe/experts/cuda/kernels/layouts.h"
#include "moe/experts/cuda/kernels/row_kernels.h"
#include "moe/gpu/cuda_status.h"

namespace switchyard {
namespace {

constexpr int kThreads = 256;
// Twice as many blocks as an H100's 132 multiprocessors hold at once, which is 8 of this size each. Each block
// loops, so that more rows need no more blocks.
constexpr int64_t kMaxBlocks = 132 * 16;

template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// kCount elements of a row that are loaded and stored together.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Piece {
  T values[kCount];
};

int NumBlocks(int64_t num_threads) {
  return static_cast<int>(std::clamp<int64_t>(CeilDiv(num_threads, kThreads), 1, kMaxBlocks));
}

// Kernels that may start early begin with this. It does nothing on GPUs before Hopper.
__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  hopper::LetNextKernelStart();
  hopper::WaitForPreviousKernels();
#endif
}

template <typename... Params, typename... Args>
absl::Status Launch(void (*kernel)(Params...), int64_t num_threads, bool early, cudaStream_t stream, Args... args) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(NumBlocks(num_threads));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  SY_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
  return absl::OkStatus();
}

template <typename T, int kCount>
__device__ __forceinline__ Piece<T, kCount> Times(const Piece<T, kCount>& piece, SumOf<T> weight) {
  Piece<T, kCount> product;
#pragma unroll
  for (int i = 0; i < kCount; ++i) product.values[i] = static_cast<T>(weight * static_cast<SumOf<T>>(piece.values[i]));
  return product;
}

// `width` and `pitch` count pieces.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) ScatterKernel(const Piece<T, kCount>* rows, int64_t num_rows, int width,
                                                          RowLists lists, Piece<T, kCount>* grouped, int pitch) {
  WaitForPrevious();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < num_rows * pitch; i += stride) {
    const int64_t row = i / pitch;
    const int col = static_cast<int>(i - row * pitch);
    Piece<T, kCount> piece{};
    if (col < width) piece = rows[row * width + col];
    const int end = lists.offsets[row + 1];
    for (int at = lists.offsets[row]; at < end; ++at) {
      const bool weighs = lists.weights != nullptr && col < width;
      grouped[static_cast<int64_t>(lists.indices[at]) * pitch + col] =
          weighs ? Times<T, kCount>(piece, lists.weights[at]) : piece;
    }
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void AddPiece(const Piece<T, kCount>& piece, SumOf<T> weight, SumOf<T>* sums) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] += weight * static_cast<SumOf<T>>(piece.values[i]);
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) SumKernel(const Piece<T, kCount>* addends, int pitch, RowLists lists,
                                                      Piece<T, kCount>* sums, int64_t num_rows, int width) {
  WaitForPrevious();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < num_rows * width; i += stride) {
    const int64_t row = i / width;
    const int col = static_cast<int>(i - row * width);
    SumOf<T> sum[kCount] = {};
    const int end = lists.offsets[row + 1];
    constexpr int kAhead = 4;  // loads in flight
    for (int at = lists.offsets[row]; at < end; at += kAhead) {
      Piece<T, kCount> pieces[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (at + j < end) pieces[j] = addends[static_cast<int64_t>(lists.indices[at + j]) * pitch + col];
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (at + j < end) AddPiece<T, kCount>(pieces[j], lists.weights != nullptr ? lists.weights[at + j] : 1, sum);
      }
    }
    Piece<T, kCount> out;
#pragma unroll
    for (int j = 0; j < kCount; ++j) out.values[j] = static_cast<T>(sum[j]);
    sums[i] = out;
  }
}

// P is a Piece; `width` counts pieces.
template <typename P>
__global__ void __launch_bounds__(kThreads)
    GatherKernel(const P* rows, int width, const int32_t* indices, P* out, int64_t num_rows) {
  WaitForPrevious();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < num_rows * width; i += stride) {
    const int64_t row = i / width;
    out[i] = rows[indices[row] * static_cast<int64_t>(width) + (i - row * width)];
  }
}

template <typename T, typename Act>
__global__ void __launch_bounds__(kThreads) ActivateKernel(ActivateArgs args, Act act) {
  const T* products = static_cast<const T*>(args.products);
  T* const out = static_cast<T*>(args.out);
  const SumOf<T>* const biases = static_cast<const SumOf<T>*>(args.bias);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < args.num_rows * args.pitch;
       i += stride) {
    const int64_t row = i / args.pitch;
    const int64_t col = i - row * args.pitch;
    SumOf<T> value = 0;
    if (col < args.width) {
      const T* const in = products + row * args.product_pitch + col;
      const SumOf<T> bias = biases != nullptr ? biases[col] : 0;
      const SumOf<T> first = static_cast<SumOf<T>>(in[0]) + bias;
      if (args.gated) {
        const SumOf<T> up_bias = biases != nullptr ? biases[args.pitch + col] : 0;
        value = MultiplyGated(act, first, static_cast<SumOf<T>>(in[args.pitch]) + up_bias);
      } else {
        value = act.Apply(first);
      }
    }
    out[i] = static_cast<T>(value);
  }
}

bool IsAligned(const void* pointer, size_t num_bytes) { return reinterpret_cast<uintptr_t>(pointer) % num_bytes == 0; }

// Calls body(T{}, count) with as many elements of T as 16-byte accesses allow.
template <typename T, typename Body>
absl::Status WithPieces(bool whole_pieces, const Body& body) {
  if (whole_pieces) return body(T{}, std::integral_constant<int, 16 / sizeof(T)>{});
  return body(T{}, std::integral_constant<int, 1>{});
}

template <typename Body>
absl::Status WithType(DType dtype, bool whole_pieces, const Body& body) {
  switch (dtype) {
    case DType::kF64:
      return WithPieces<double>(whole_pieces, body);
    case DType::kF32:
      return WithPieces<float>(whole_pieces, body);
    case DType::kF16:
      return WithPieces<__half>(whole_pieces, body);
    case DType::kBF16:
      return WithPieces<__nv_bfloat16>(whole_pieces, body);
  }
  return absl::InternalError("no such element type");
}

template <typename T>
absl::Status LaunchActivate(const ActivateArgs& args, cudaStream_t stream) {
  using F = SumOf<T>;
  const auto launch = [&](auto act) {
    return Launch(ActivateKernel<T, decltype(act)>, args.num_rows * args.pitch, false, stream, args, act);
  };
  switch (args.form) {
    case InnerForm::kNone:
      return launch(Identity{});
    case InnerForm::kSilu:
      return launch(Silu{});
    case InnerForm::kGelu:
      return launch(Gelu{});
    case InnerForm::kRelu:
      return launch(Relu{});
    case InnerForm::kGeluTanh:
      return launch(GeluTanh{});
    case InnerForm::kSwish:
      return launch(Swish<F>{
          {static_cast<F>(args.swish.scale), static_cast<F>(args.swish.limit), static_cast<F>(args.swish.up_offset)}});
  }
  return absl::InternalError("no such form");
}

}  // namespace

absl::Status ScatterRows(ConstMatrixView rows, const RowLists& lists, void* grouped, int64_t pitch,
                         cudaStream_t stream) {
  if (rows.num_rows == 0) return absl::OkStatus();
  const bool whole = rows.row_bytes() % 16 == 0 && IsAligned(rows.data, 16);
  return WithType(rows.dtype, whole, [&](auto element, auto count) {
    using T = decltype(element);
    constexpr int kCount = decltype(count)::value;
    using P = Piece<T, kCount>;
    return Launch(ScatterKernel<T, kCount>, rows.num_rows * pitch / kCount, false, stream,
                  reinterpret_cast<const P*>(rows.data), rows.num_rows, rows.num_cols / kCount, lists,
                  static_cast<P*>(grouped), pitch / kCount);
  });
}

absl::Status SumRows(const void* addends, int64_t pitch, const RowLists& lists, MatrixView sums, bool early,
                     cudaStream_t stream) {
  if (sums.num_rows == 0) return absl::OkStatus();
  const bool whole = sums.row_bytes() % 16 == 0 && IsAligned(sums.data, 16) && IsAligned(addends, 16) &&
                     pitch * SizeOf(sums.dtype) % 16 == 0;
  return WithType(sums.dtype, whole, [&](auto element, auto count) {
    using T = decltype(element);
    constexpr int kCount = decltype(count)::value;
    using P = Piece<T, kCount>;
    return Launch(SumKernel<T, kCount>, sums.num_rows * sums.num_cols / kCount, early, stream,
                  static_cast<const P*>(addends), pitch / kCount, lists, reinterpret_cast<P*>(sums.data), sums.num_rows,
                  sums.num_cols / kCount);
  });
}

absl::Status GatherRows(ConstMatrixView rows, const int32_t* indices, MatrixView out, cudaStream_t stream) {
  if (out.num_rows == 0) return absl::OkStatus();
  const bool whole = rows.row_bytes() % 16 == 0 && IsAligned(rows.data, 16) && IsAligned(out.data, 16);
  return WithType(rows.dtype, whole, [&](auto element, auto count) {
    using P = Piece<decltype(element), decltype(count)::value>;
    return Launch(GatherKernel<P>, out.num_rows * out.num_cols / count, false, stream,
                  reinterpret_cast<const P*>(rows.data), rows.num_cols / count, indices, reinterpret_cast<P*>(out.data),
                  out.num_rows);
  });
}

absl::Status ActivateRows(const ActivateArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return absl::OkStatus();
  switch (args.dtype) {
    case DType::kF64:
      return LaunchActivate<double>(args, stream);
    case DType::kF32:
      return LaunchActivate<float>(args, stream);
    case DType::kF16:
      return LaunchActivate<__half>(args, stream);
    case DType::kBF16:
      return LaunchActivate<__nv_bfloat16>(args, stream);
  }
  return absl::InternalError("no such element type");
}

}  // namespace switchyard
