#include "moe/experts/cpu/row_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "base/tensor/float16.h"

namespace switchyard {
namespace {

#define SY_ALWAYS_INLINE inline __attribute__((always_inline))

SY_ALWAYS_INLINE float Load(BF16 value) { return BF16ToF32(value.bits); }
SY_ALWAYS_INLINE float Load(float value) { return value; }
SY_ALWAYS_INLINE double Load(double value) { return value; }

SY_ALWAYS_INLINE void Store(float value, BF16* out) { out->bits = F32ToBF16(value); }
SY_ALWAYS_INLINE void Store(float value, float* out) { *out = value; }
SY_ALWAYS_INLINE void Store(double value, double* out) { *out = value; }

template <typename Sum, typename Out>
SY_ALWAYS_INLINE void MultiplyAdd(Sum weight, const Sum* y, const Sum* base, Out* out, int64_t num_cols) {
  if (base == nullptr) {
#pragma GCC ivdep
    for (int64_t i = 0; i < num_cols; ++i) Store(weight * y[i], &out[i]);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < num_cols; ++i) Store(weight * y[i] + base[i], &out[i]);
  }
}

template <typename T>
SY_ALWAYS_INLINE void AddRows(const T* const* sources, int num_sources, T* out, int64_t num_cols) {
  constexpr int64_t kBlock = 512;  // small enough that the sums stay in the first-level cache
  SumOf<T> sums[kBlock];
  for (int64_t begin = 0; begin < num_cols; begin += kBlock) {
    const int64_t count = std::min(kBlock, num_cols - begin);
    for (int64_t i = 0; i < count; ++i) sums[i] = Load(sources[0][begin + i]);
    for (int s = 1; s < num_sources; ++s) {
      const T* source = sources[s] + begin;
      for (int64_t i = 0; i < count; ++i) sums[i] += Load(source[i]);
    }
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) Store(sums[i], &out[begin + i]);
  }
}

template <typename T>
SY_ALWAYS_INLINE void ScaleRow(SumOf<T> weight, const T* row, T* out, int64_t num_cols) {
#pragma GCC ivdep
  for (int64_t i = 0; i < num_cols; ++i) Store(weight * Load(row[i]), &out[i]);
}

SY_ALWAYS_INLINE double Exp(double x) { return std::exp(x); }

// e^x in arithmetic that the compiler can vectorise in loops: 2^n · e^r with |r| <= ln 2 / 2, where the series up to
// r^7 errs by less than 2^-27. Results are infinite from 2^127.5 on and never below 2^-126; NaN stays NaN.
SY_ALWAYS_INLINE float Exp(float x) {
  constexpr float kRounder = 0x1.8p23f;  // adding it rounds to an integer: floats this large have no fraction bits
  constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = static_cast<float>(std::numbers::ln2 - 0x1.62e4p-1);
  x = x > 88.7228f ? 88.7228f : x;
  x = x < -87.3f ? -87.3f : x;
  const float shifted = x * std::numbers::log2e_v<float> + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRounder) + 127;
  return sum * std::bit_cast<float>(exponent << 23);
}

template <typename T>
SY_ALWAYS_INLINE void MultiplyClamped(const ClampedSwish& formula, const SumOf<T>* gate, const SumOf<T>* up, T* out,
                                      int64_t num_cols) {
  using Sum = SumOf<T>;
  const Sum scale = formula.scale, limit = formula.limit, up_offset = formula.up_offset;
#pragma GCC ivdep
  for (int64_t i = 0; i < num_cols; ++i) {
    const Sum g = gate[i] > limit ? limit : gate[i];
    const Sum below = up[i] > limit ? limit : up[i];
    const Sum u = below < -limit ? -limit : below;
    Store(g / (1 + Exp(-scale * g)) * (u + up_offset), &out[i]);
  }
}

// Defines the kernels compiled for one instruction set.
#define SY_DEFINE_KERNELS(NAME, ATTRIBUTE)                                                                    \
  template <typename T>                                                                                       \
  struct NAME {                                                                                               \
    using Sum = SumOf<T>;                                                                                     \
    ATTRIBUTE static void Accumulate(Sum weight, const Sum* y, const Sum* base, Sum* out, int64_t num_cols) { \
      MultiplyAdd(weight, y, base, out, num_cols);                                                            \
    }                                                                                                         \
    ATTRIBUTE static void Finish(Sum weight, const Sum* y, const Sum* base, T* out, int64_t num_cols) {       \
      MultiplyAdd(weight, y, base, out, num_cols);                                                            \
    }                                                                                                         \
    ATTRIBUTE static void Add(const T* const* sources, int num_sources, T* out, int64_t num_cols) {           \
      AddRows(sources, num_sources, out, num_cols);                                                           \
    }                                                                                                         \
    ATTRIBUTE static void Scale(Sum weight, const T* row, T* out, int64_t num_cols) {                         \
      ScaleRow(weight, row, out, num_cols);                                                                   \
    }                                                                                                         \
    ATTRIBUTE static void Clamped(const ClampedSwish& formula, const Sum* gate, const Sum* up, T* out,        \
                                  int64_t num_cols) {                                                         \
      MultiplyClamped(formula, gate, up, out, num_cols);                                                      \
    }                                                                                                         \
    static RowKernels<T> Table() { return {Accumulate, Finish, Scale, Clamped, Add}; }                        \
  }

SY_DEFINE_KERNELS(Avx512, __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512"))));
SY_DEFINE_KERNELS(Avx2, __attribute__((target("avx2,fma"))));
SY_DEFINE_KERNELS(Baseline, );

}  // namespace

template <typename T>
RowKernels<T> FastestRowKernels() {
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return Avx512<T>::Table();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Avx2<T>::Table();
  return Baseline<T>::Table();
}

template RowKernels<float> FastestRowKernels();
template RowKernels<double> FastestRowKernels();
template RowKernels<BF16> FastestRowKernels();

}  // namespace switchyard
