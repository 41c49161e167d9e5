// Measures how far two matrices are apart.
#pragma once

#include <cstdint>

#include "base/tensor/tensor.h"

namespace switchyard {

// An element agrees when |actual − expected| ≤ absolute + relative · |expected|.
struct Tolerance {
  double relative = 1e-4;
  double absolute = 1e-5;
};

struct Comparison {
  double max_abs_error = 0;  // infinite where one is NaN or infinite and the other is not
  double max_rel_error = 0;  // |actual − expected| / |expected|, over the elements whose expected value is not 0
  int64_t num_elements = 0;
  int64_t num_beyond = 0;  // elements that do not agree
  // The element with the largest absolute error.
  int64_t worst_row = 0;
  int64_t worst_col = 0;

  bool within_tolerance() const { return num_beyond == 0; }
};

// Both matrices have the same shape; their types may differ. Errors are computed in fp64. NaN agrees with NaN only, and
// an infinity with the same infinity only. Pure.
Comparison Compare(ConstMatrixView actual, ConstMatrixView expected, const Tolerance& tolerance);

}  // namespace switchyard
