// y[M, N] = x[M, K] · W for a handful of bf16 rows, where a library's general kernel spends its time on everything but
// reading W once. The CPU must have bf16_products.h's instruction.
//
// W is read in oneDNN's layout for such CPUs (BA16a64b2a), so that few and many rows share one copy of the weights:
// columns in blocks of 64, padded with zeros; in a block, for each pair of consecutive k, the pairs of all columns.
#pragma once

#include <cstdint>

#include "moe/linear/bf16_products.h"

namespace switchyard {

inline constexpr int64_t kFewRowsBlock = 64;  // columns

// One block, of which the first num_cols <= 64 columns are wanted; packed is [K / 2, kFewRowsBlock, 2]. K is even.
// Pure.
void MultiplyFewRows(const Bf16Product& product);

}  // namespace switchyard
