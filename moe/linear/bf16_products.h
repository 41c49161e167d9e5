// The CPU's instruction for products of bf16 pairs, summed in fp32 (AVX512-BF16), for functions that ask first.
#pragma once

// Of functions that use it.
#define SY_BF16_PRODUCTS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace switchyard {

inline bool HasBf16Products() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}

}  // namespace switchyard
