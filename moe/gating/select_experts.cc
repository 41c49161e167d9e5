// Scoring and top-k of one row at a time, written as loops that the compiler turns into vector code. No row is sorted:
// with AVX-512 a bound below the k-th largest key leaves some k to 2k candidates, which are ranked one by one; else the
// largest is taken k times.
//
// Experts are ranked by logit, which orders them as their softmax does but tells apart scores that the exponential
// rounds to the same value. The softmax is then needed of the k chosen only, and its denominator over all experts only
// when the weights are not renormalised, where it would cancel.
//
// A largest logit that is infinite has no softmax (inf - inf): the experts are still chosen by logit, the weights are
// NaN. A logit of -inf beside a finite one has weight 0.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "moe/gating/gate.h"

namespace switchyard {
namespace {

#define SY_ALWAYS_INLINE inline __attribute__((always_inline))

constexpr int kLanes = 16;                                       // floats in the widest vector register
constexpr int32_t kTaken = std::numeric_limits<int32_t>::min();  // below the key of every float

int PaddedSize(int num_experts) { return (num_experts + kLanes - 1) / kLanes * kLanes; }

// Working memory of one row; the padding behind the last expert holds kTaken and -inf throughout.
struct RowScratch {
  explicit RowScratch(int num_experts)
      : keys(PaddedSize(num_experts), kTaken), logits(PaddedSize(num_experts), -INFINITY) {}
  std::vector<int32_t> keys;
  std::vector<float> logits;
};

// Fills the scratch with a row's logits and with integers in the same order. Returns whether any is NaN.
SY_ALWAYS_INLINE bool LoadRow(const float* logits, int num_experts, RowScratch* scratch) {
  int32_t* keys = scratch->keys.data();
  float* copy = scratch->logits.data();
  int32_t any_nan = 0;
  for (int i = 0; i < num_experts; ++i) {
    copy[i] = logits[i];
    const int32_t bits = std::bit_cast<int32_t>(logits[i] + 0.0f);  // the sum turns -0 into +0, which ties with it
    any_nan |= (bits & 0x7fffffff) > 0x7f800000 ? 1 : 0;
    keys[i] = bits ^ ((bits >> 31) & 0x7fffffff);
  }
  return any_nan != 0;
}

// The lowest index of the largest key, which is then marked as taken.
SY_ALWAYS_INLINE int32_t TakeLargest(int32_t* keys, int num_keys) {
  int32_t largest = kTaken;
  for (int i = 0; i < num_keys; ++i) largest = std::max(largest, keys[i]);
  int32_t index = std::numeric_limits<int32_t>::max();
  for (int i = 0; i < num_keys; ++i) index = std::min(index, keys[i] == largest ? i : index);
  keys[index] = kTaken;
  return index;
}

SY_ALWAYS_INLINE void TakeLargestK(int32_t* keys, int num_keys, int top_k, int32_t* expert_idx) {
  for (int j = 0; j < top_k; ++j) expert_idx[j] = TakeLargest(keys, num_keys);
}

#define SY_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")))

// A key that at least `rank` <= kLanes keys reach: the rank-th largest of the lanes' maxima.
SY_ALWAYS_INLINE int32_t BoundBelow(const int32_t* keys, int num_keys, int rank) {
  int32_t largest[kLanes], num_above[kLanes] = {};
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

// The `top_k` best of the keys that reach `bound`, best first. Equal keys stay in the order of their indices, as they
// come in it and only pass smaller ones.
SY_AVX512 inline void RankCandidates(const int32_t* keys, int num_keys, int32_t bound, int top_k, int32_t* expert_idx) {
  int32_t best[kLanes];
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

SY_AVX512 inline void TakeLargestKAvx512(int32_t* keys, int num_keys, int top_k, int32_t* expert_idx) {
  const bool few_to_look_at = top_k * num_keys <= 4 * kLanes;
  if (top_k > kLanes || few_to_look_at) return TakeLargestK(keys, num_keys, top_k, expert_idx);
  RankCandidates(keys, num_keys, BoundBelow(keys, num_keys, top_k), top_k, expert_idx);
}

// e^x for x <= 0, within 2 units in the last place; below -87 about 1e-38 instead of a smaller value.
SY_ALWAYS_INLINE float ExpOfNonPositive(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.0f;  // 1.5 · 2^23: adding it leaves the nearest integer in the low mantissa bits
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  // e^r on [-ln2/2, ln2/2], Taylor's series to the 7th power.
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRounder);
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + (exponent << 23));
}

// The same, but 0 where e^x is no normal number.
SY_ALWAYS_INLINE float ExpOrZero(float x) { return x < -87.0f ? 0.0f : ExpOfNonPositive(x); }

SY_ALWAYS_INLINE float SumOfExp(const float* logits, int padded_size, float largest) {
  float sums[kLanes] = {};
  for (int begin = 0; begin < padded_size; begin += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += ExpOfNonPositive(logits[begin + lane] - largest);
  }
  float total = 0.0f;
  for (float sum : sums) total += sum;
  return total;
}

void FillNanRow(int top_k, int32_t* expert_idx, float* weight) {
  for (int j = 0; j < top_k; ++j) {
    expert_idx[j] = j;
    weight[j] = NAN;
  }
}

// Softmax weights of the chosen experts.
SY_ALWAYS_INLINE void WeighRow(const GateSpec& spec, const RowScratch& scratch, const int32_t* expert_idx,
                               float* weight) {
  const float* logits = scratch.logits.data();
  const float largest = logits[expert_idx[0]];
  double sum_of_chosen = 0.0;  // exact enough for any number of choices
  for (int j = 0; j < spec.top_k; ++j) {
    weight[j] = ExpOrZero(logits[expert_idx[j]] - largest);
    sum_of_chosen += weight[j];
  }
  const float sum =
      spec.renormalize ? static_cast<float>(sum_of_chosen) : SumOfExp(logits, scratch.logits.size(), largest);
  for (int j = 0; j < spec.top_k; ++j) weight[j] /= sum;
}

using TakeLargestKFn = void (*)(int32_t* keys, int num_keys, int top_k, int32_t* expert_idx);

template <TakeLargestKFn kTakeLargestK>
SY_ALWAYS_INLINE void SelectRow(const GateSpec& spec, const float* logits, int num_experts, RowScratch* scratch,
                                int32_t* expert_idx, float* weight) {
  if (LoadRow(logits, num_experts, scratch)) return FillNanRow(spec.top_k, expert_idx, weight);
  kTakeLargestK(scratch->keys.data(), scratch->keys.size(), spec.top_k, expert_idx);
  if (std::isinf(logits[expert_idx[0]])) {
    std::fill_n(weight, spec.top_k, NAN);
  } else {
    WeighRow(spec, *scratch, expert_idx, weight);
  }
}

template <TakeLargestKFn kTakeLargestK>
SY_ALWAYS_INLINE void SelectRows(const GateSpec& spec, const float* logits, int64_t num_rows, int num_experts,
                                 int32_t* expert_idx, float* weight) {
  RowScratch scratch(num_experts);
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    SelectRow<kTakeLargestK>(spec, logits + row_idx * num_experts, num_experts, &scratch,
                             expert_idx + row_idx * spec.top_k, weight + row_idx * spec.top_k);
  }
}

// The same code for three generations of vector registers.
using SelectRowsFn = void (*)(const GateSpec&, const float*, int64_t, int, int32_t*, float*);

SY_AVX512 void SelectRowsAvx512(const GateSpec& spec, const float* logits, int64_t num_rows, int num_experts,
                                int32_t* expert_idx, float* weight) {
  SelectRows<TakeLargestKAvx512>(spec, logits, num_rows, num_experts, expert_idx, weight);
}

__attribute__((target("avx2,fma"))) void SelectRowsAvx2(const GateSpec& spec, const float* logits, int64_t num_rows,
                                                        int num_experts, int32_t* expert_idx, float* weight) {
  SelectRows<TakeLargestK>(spec, logits, num_rows, num_experts, expert_idx, weight);
}

void SelectRowsBaseline(const GateSpec& spec, const float* logits, int64_t num_rows, int num_experts,
                        int32_t* expert_idx, float* weight) {
  SelectRows<TakeLargestK>(spec, logits, num_rows, num_experts, expert_idx, weight);
}

SelectRowsFn FastestSelectRows() {
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return SelectRowsAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SelectRowsAvx2;
  return SelectRowsBaseline;
}

}  // namespace

void SelectExperts(const GateSpec& spec, const float* logits, int64_t num_rows, int num_experts, int64_t first_row,
                   Routing* routing) {
  const size_t first = static_cast<size_t>(first_row) * spec.top_k;
  FastestSelectRows()(spec, logits, num_rows, num_experts, routing->expert_idx.data() + first,
                      routing->weight.data() + first);
}

}  // namespace switchyard
