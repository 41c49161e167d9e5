// y[M, N] = x[M, K] · W for a handful of bf16 rows, where a library's general kernel spends its time on everything but
// reading W once. The CPU must have bf16_products.h's instruction.
//
// W is read in oneDNN's layout for such CPUs (BA16a64b2a), so that few and many rows share one copy of the weights:
// columns in blocks of 64, padded with zeros; in a block, for each pair of consecutive k, the pairs of all columns.
#pragma once

#include <cstdint>

namespace switchyard {

inline constexpr int64_t kFewRowsBlock = 64;  // columns

// One block, of which the first num_cols <= 64 columns are wanted. K is even. Rows of x and y lie
// x_stride and y_stride elements apart, at any address. Pure.
struct FewRowsProduct {
  const uint16_t* x;  // bf16 [num_rows, K]
  int64_t x_stride;
  const uint16_t* packed;  // bf16 [K / 2, kFewRowsBlock, 2]
  float* y;                // [num_rows, num_cols]
  int64_t y_stride;
  int64_t num_rows;
  int64_t in_features;  // K
  int num_cols;
};

void MultiplyFewRows(const FewRowsProduct& product);

}  // namespace switchyard
