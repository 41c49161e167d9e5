// Activations and element conversions for device code. They compute in fp32, and in fp64 in fp64 engines.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "moe/experts/cuda/kernels/inner_formula.h"

namespace switchyard {

struct Identity {
  static __device__ __forceinline__ float Apply(float x) { return x; }
  static __device__ __forceinline__ double Apply(double x) { return x; }
};

struct Silu {
  static __device__ __forceinline__ float Apply(float x) { return __fdividef(x, 1.0f + __expf(-x)); }
  static __device__ __forceinline__ double Apply(double x) { return x / (1.0 + exp(-x)); }
};

// The erf form.
struct Gelu {
  static __device__ __forceinline__ float Apply(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
  static __device__ __forceinline__ double Apply(double x) { return 0.5 * x * (1.0 + erf(x * 0.70710678118654752)); }
};

// Keeps NaN, which fmaxf would turn into 0.
struct Relu {
  static __device__ __forceinline__ float Apply(float x) {
    float y;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
    return y;
  }
  static __device__ __forceinline__ double Apply(double x) { return x < 0.0 ? 0.0 : x; }
};

struct GeluTanh {
  static __device__ __forceinline__ float Apply(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
  }
  static __device__ __forceinline__ double Apply(double x) {
    return 0.5 * x * (1.0 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
  }
};

// x · sigmoid(scale · x). MultiplyGated also applies the bounds and the offset, if any (inner_formula.h).
template <typename F>
struct Swish {
  SwishConstants<F> constants;
  __device__ __forceinline__ float Apply(float x) const {
    return __fdividef(x, 1.0f + __expf(-static_cast<float>(constants.scale) * x));
  }
  __device__ __forceinline__ double Apply(double x) const { return x / (1.0 + exp(-constants.scale * x)); }
};

// act(gate) · up.
template <typename Act, typename F>
__device__ __forceinline__ F MultiplyGated(const Act& act, F gate, F up) {
  return act.Apply(gate) * up;
}

// The bounds keep NaN.
template <typename F>
__device__ __forceinline__ F MultiplyGated(const Swish<F>& act, F gate, F up) {
  const F limit = act.constants.limit;
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return act.Apply(gate) * (up + act.constants.up_offset);
}

// Rounds two values to 16-bit elements and packs them into one register.
template <typename T>
__device__ __forceinline__ uint32_t Pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t Pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <>
__device__ __forceinline__ uint32_t Pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace switchyard
