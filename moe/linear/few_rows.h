// y[M, N] = x[M, K] · W for a handful of bf16 rows. A library's general kernel would spend most of its time on other
// things than reading W once. The CPU must have bf16_products.h's instruction.
//
// W is read in oneDNN's layout for such CPUs (BA16a64b2a), so that few and many rows share one copy of the weights:
// columns in blocks of 64, padded with zeros; a block holds, for each pair of consecutive k, the pairs of all its
// columns.
#pragma once

#include <cstdint>

#include "moe/linear/bf16_products.h"

namespace switchyard {

inline constexpr int64_t kFewRowsBlock = 64;  // columns

// Multiplies by one block, whose first num_cols <= 64 columns are wanted; packed is [K / 2, kFewRowsBlock, 2]. K is
// even. Pure.
void MultiplyFewRows(const Bf16Product& product);

}  // namespace switchyard
