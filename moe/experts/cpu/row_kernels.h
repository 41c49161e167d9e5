// The arithmetic on rows that a step does outside its GEMMs, vectorised for the CPU that it runs on.
//
// Sums are kept in SumOf<T>: fp32 for rows of fp32 and bf16, fp64 for fp64. All functions are pure and thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {

// An element of a bf16 row.
struct BF16 {
  uint16_t bits;
};

template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// act(min(gate, limit)) · (clamp(up, ±limit) + up_offset) for act(x) = x · sigmoid(scale · x): SiLU (1) and quick-GELU
// (1.702). The bounds keep NaN, which oneDNN's clip would not; hence a kernel of our own.
struct ClampedSwish {
  double scale = 1;
  double limit = std::numeric_limits<double>::infinity();
  double up_offset = 0;
};

template <typename T>
struct RowKernels {
  using Sum = SumOf<T>;

  // out[i] = weight · y[i] + base[i]; base may be nullptr (zeros) or out itself.
  void (*accumulate)(Sum weight, const Sum* y, const Sum* base, Sum* out, int64_t num_cols);

  // Like accumulate, with the result rounded to the rows' type.
  void (*finish)(Sum weight, const Sum* y, const Sum* base, T* out, int64_t num_cols);

  // out[i] = weight · row[i], rounded to the rows' type.
  void (*scale)(Sum weight, const T* row, T* out, int64_t num_cols);

  // out[i] = ClampedSwish's formula of gate[i] and up[i].
  void (*clamped_swish)(const ClampedSwish& formula, const Sum* gate, const Sum* up, T* out, int64_t num_cols);

  // out[i] = the sum of sources[0][i], sources[1][i], … in this order; num_sources >= 1. No source overlaps out.
  void (*add_rows)(const T* const* sources, int num_sources, T* out, int64_t num_cols);
};

// Kernels for the widest vector registers that this CPU has; T is float, double or BF16.
template <typename T>
RowKernels<T> FastestRowKernels();

}  // namespace switchyard
