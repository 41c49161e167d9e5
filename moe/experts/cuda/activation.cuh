// Activations and element conversions of device code. fp32 everywhere but in fp64 engines.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

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

struct Relu {
  static __device__ __forceinline__ float Apply(float x) { return fmaxf(x, 0.0f); }
  static __device__ __forceinline__ double Apply(double x) { return fmax(x, 0.0); }
};

// Two values as one register of two 16-bit elements.
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
