// The numbers of synthetic weights: a counter-based generator, so that element i of a stream costs the same whichever
// elements were made before it.
#pragma once

#include <cstdint>

#include "base/tensor/tensor.h"

namespace switchyard {

// A well-mixed 64-bit hash of `value` (the output function of splitmix64).
inline uint64_t MixBits(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Fills `matrix` with stream `key`: uniform in (-bound, bound), one of 2^16 evenly spaced values symmetric about zero,
// computed in fp32 and rounded to the matrix's type.
void FillUniform(uint64_t key, float bound, MatrixView matrix);

}  // namespace switchyard
