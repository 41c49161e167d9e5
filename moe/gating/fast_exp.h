// Exponentials in fp32 that the compiler turns into vector code. Pure.
#pragma once

#include <bit>
#include <cstdint>

#include "moe/gating/top_keys.h"

namespace switchyard {

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
  alignas(kLaneBytes) float sums[kLanes] = {};
  for (int begin = 0; begin < padded_size; begin += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += ExpOfNonPositive(logits[begin + lane] - largest);
  }
  float total = 0.0f;
  for (float sum : sums) total += sum;
  return total;
}

// 1 / (1 + e^-x) without overflow, within 4 units in the last place; 0 below -87. The result for NaN is unspecified.
SY_ALWAYS_INLINE float Sigmoid(float x) {
  const float below_one = ExpOrZero(x < 0.0f ? x : -x);
  return (x < 0.0f ? below_one : 1.0f) / (1.0f + below_one);
}

}  // namespace switchyard
