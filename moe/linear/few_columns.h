// y[M, N] = x[M, K] · Wᵀ for bf16 and a handful of columns, as dot products of a row of x and a row of W. The usual
// kernels hold a column in each lane of a register, so a few columns would leave most lanes empty; here the lanes
// divide up K. The CPU must have bf16_products.h's instruction.
#pragma once

#include <cstdint>

#include "moe/linear/bf16_products.h"

namespace switchyard {

inline constexpr int kFewColumns = 8;
inline constexpr int64_t kFewColumnsBlock = 32;  // elements of K that fill a register

// Elements of `num_cols` columns once they are packed.
constexpr int64_t PackedFewColumns(int64_t in_features, int num_cols) {
  return (in_features + kFewColumnsBlock - 1) / kFewColumnsBlock * kFewColumnsBlock * num_cols;
}

// Packs `weight` [num_cols, K] in blocks of kFewColumnsBlock elements of K, the last padded with zeros; a block holds
// all columns. Columns side by side do not compete for places in the cache, as rows that lie a power of two apart
// would.
void PackFewColumns(const uint16_t* weight, int64_t in_features, int num_cols, uint16_t* packed);

// num_cols is 1 to kFewColumns; packed is [⌈K / kFewColumnsBlock⌉, num_cols, kFewColumnsBlock]. Pure.
void MultiplyFewColumns(const Bf16Product& product);

}  // namespace switchyard
