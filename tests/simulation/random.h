// The simulation's only source of chance: a small generator whose numbers are the same everywhere, unlike those of the
// standard library's distributions.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace switchyard::simulation {

using Nanos = std::chrono::nanoseconds;

// Mixes the bits of `x` (splitmix64's finaliser).
inline uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(Mix(seed + 0x9e3779b97f4a7c15ull)) {}

  uint64_t Next() { return Mix(state_ += 0x9e3779b97f4a7c15ull); }
  // In [0, bound).
  int64_t Below(int64_t bound) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(bound)); }
  // In [low, high].
  int64_t In(int64_t low, int64_t high) { return low + Below(high - low + 1); }
  bool Chance(int percent) { return Below(100) < percent; }
  int64_t Of(std::initializer_list<int64_t> choices) { return *(choices.begin() + Below(choices.size())); }
  template <typename T>
  T& Of(std::vector<T>& choices) {
    return choices[Below(choices.size())];
  }
  // A time of this order of magnitude: from a quarter of it to twice as much.
  Nanos About(Nanos usual) { return Nanos(In(usual.count() / 4, usual.count() * 2)); }
  // Usually short, now and then up to a hundred times as long.
  Nanos Delay(Nanos usual) { return About(Chance(5) ? usual * Below(50) : usual); }

 private:
  uint64_t state_;
};

}  // namespace switchyard::simulation
