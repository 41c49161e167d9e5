// The CPU's instruction for products of bf16 pairs, summed in fp32 (AVX512-BF16): how functions are compiled for it,
// whether the CPU has it, and the operands of those functions.
#pragma once

#include <cstdint>

// The attribute of functions that use the instruction. Their callers check HasBf16Products() first.
#define SY_BF16_PRODUCTS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace switchyard {

inline bool HasBf16Products() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}

// y[num_rows, num_cols] of bf16 x and a packed weight, summed in fp32. Rows of x and y lie x_stride and y_stride
// elements apart, at any address.
struct Bf16Product {
  const uint16_t* x;  // bf16 [num_rows, K]
  int64_t x_stride;
  const uint16_t* packed;  // bf16, in the layout of the function that multiplies
  float* y;                // [num_rows, num_cols]
  int64_t y_stride;
  int64_t num_rows;
  int64_t in_features;  // K
  int num_cols;
};

}  // namespace switchyard
