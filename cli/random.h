// A small seeded generator. Its numbers are the same on every platform, unlike those of <random>'s distributions.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>

namespace switchyard {

// SplitMix64: advances `state` and returns 64 well-mixed bits.
inline uint64_t NextRandom(uint64_t* state) {
  uint64_t bits = (*state += 0x9e3779b97f4a7c15u);
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

// Uniform in [0, 1).
inline double NextUniform(uint64_t* state) { return static_cast<double>(NextRandom(state) >> 11) * 0x1p-53; }

// Two independent values of the standard normal distribution (Box and Muller).
inline std::pair<float, float> NextNormals(uint64_t* state) {
  const uint64_t bits = NextRandom(state);
  const float radius = std::sqrt(-2 * std::log((static_cast<float>(bits >> 40) + 1) * 0x1p-24f));
  const float angle = 2 * std::numbers::pi_v<float> * static_cast<float>((bits >> 8) & 0xffffff) * 0x1p-24f;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace switchyard
