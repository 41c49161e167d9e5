// Finds the k largest of some floats, as integers in the same order, with loops that the compiler turns into vector
// code. Nothing is sorted: with AVX-512 a bound below the k-th largest key leaves some k to 2k candidates, which are
// ranked one by one; without it the largest is taken k times.
//
// All functions are inlined into callers that are compiled once per generation of vector registers. Pure.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#define SY_ALWAYS_INLINE inline __attribute__((always_inline))
#define SY_AVX2 __attribute__((target("avx2,fma")))
#define SY_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")))

namespace switchyard {

inline constexpr int kLanes = 16;  // floats in the widest vector register
// Alignment of arrays of kLanes floats, given explicitly because the compiler counts on it and AddressSanitizer's stack
// frames have less.
inline constexpr int kLaneBytes = kLanes * sizeof(float);
// Below the key of every number: only a NaN can have it. It marks keys that are taken or beyond the end.
inline constexpr int32_t kTaken = std::numeric_limits<int32_t>::min();

inline int PaddedSize(int num_values) { return (num_values + kLanes - 1) / kLanes * kLanes; }

// Integers in the order of the floats; -0 and +0 have the same one.
SY_ALWAYS_INLINE int32_t KeyOf(float value) {
  const int32_t bits = std::bit_cast<int32_t>(value + 0.0f);  // the sum turns -0 into +0
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The inverse of KeyOf.
SY_ALWAYS_INLINE float FloatOf(int32_t key) { return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff)); }

// The lowest index of the largest key, which is then marked as taken.
SY_ALWAYS_INLINE int32_t TakeLargest(int32_t* keys, int num_keys) {
  int32_t largest = kTaken;
  for (int i = 0; i < num_keys; ++i) largest = std::max(largest, keys[i]);
  int32_t index = std::numeric_limits<int32_t>::max();
  for (int i = 0; i < num_keys; ++i) index = std::min(index, keys[i] == largest ? i : index);
  keys[index] = kTaken;
  return index;
}

// The `top_k` largest keys, best first, ties by the lower index; any top_k up to the number of keys.
SY_ALWAYS_INLINE void TakeLargestK(int32_t* keys, int num_keys, int top_k, int32_t* expert_idx) {
  for (int j = 0; j < top_k; ++j) expert_idx[j] = TakeLargest(keys, num_keys);
}

// A key that at least `rank` <= kLanes keys reach: the rank-th largest of the lanes' maxima.
SY_ALWAYS_INLINE int32_t BoundBelow(const int32_t* keys, int num_keys, int rank) {
  alignas(kLaneBytes) int32_t largest[kLanes];
  alignas(kLaneBytes) int32_t num_above[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) largest[lane] = keys[lane];
  for (int begin = kLanes; begin < num_keys; begin += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) largest[lane] = std::max(largest[lane], keys[begin + lane]);
  }
  for (int i = 0; i < kLanes; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) num_above[lane] += largest[i] > largest[lane] ? 1 : 0;
  }
  int32_t bound = std::numeric_limits<int32_t>::max();
  for (int lane = 0; lane < kLanes; ++lane) bound = std::min(bound, num_above[lane] < rank ? largest[lane] : bound);
  return bound;
}

// The `top_k` best of the keys that reach `bound`, best first. Equal keys stay in the order of their indices, because
// they come in that order and only pass smaller ones.
SY_AVX512 inline void RankCandidates(const int32_t* keys, int num_keys, int32_t bound, int top_k, int32_t* expert_idx) {
  alignas(kLaneBytes) int32_t best[kLanes];
  int num_best = 0;
  for (int begin = 0; begin < num_keys; begin += kLanes) {
    uint32_t reached = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + begin), _mm512_set1_epi32(bound));
    for (; reached != 0; reached &= reached - 1) {
      const int32_t index = begin + std::countr_zero(reached), key = keys[index];
      if (num_best == top_k && key <= best[top_k - 1]) continue;
      int place = num_best < top_k ? num_best++ : top_k - 1;
      for (; place > 0 && best[place - 1] < key; --place) {
        best[place] = best[place - 1];
        expert_idx[place] = expert_idx[place - 1];
      }
      best[place] = key;
      expert_idx[place] = index;
    }
  }
}

// TakeLargestK with AVX-512; `num_keys` is a multiple of kLanes.
SY_AVX512 inline void TakeLargestKAvx512(int32_t* keys, int num_keys, int top_k, int32_t* expert_idx) {
  const bool few_to_look_at = top_k * num_keys <= 4 * kLanes;
  if (top_k > kLanes || few_to_look_at) return TakeLargestK(keys, num_keys, top_k, expert_idx);
  RankCandidates(keys, num_keys, BoundBelow(keys, num_keys, top_k), top_k, expert_idx);
}

// The fastest version that this CPU can run, of the same code for three generations of vector registers.
template <typename Fn>
Fn FastestOf(Fn avx512, Fn avx2, Fn baseline) {
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
  return baseline;
}

}  // namespace switchyard
