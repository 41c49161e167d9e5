#include "moe/experts/cpu/row_kernels.h"

#include <algorithm>

#include "moe/tensor/float16.h"

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
  constexpr int64_t kBlock = 512;  // sums that stay in the first-level cache
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

// The three kernels compiled with one generation's instructions.
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
    static RowKernels<T> Table() { return {Accumulate, Finish, Add}; }                                        \
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
