// Converts runs of elements between types: rows on entry and exit, weights at load.
#pragma once

#include <cstddef>

#include "base/tensor/dtype.h"

namespace switchyard {

// Converts `num_elements` from `from` at `src` to `to` at `dst`. The two must not overlap. `src` may be unaligned,
// because it often points into a received message; `dst` is aligned to its element. Equal types are copied bit for bit;
// others go through fp32 (fp64 to fp32 rounds once), so values beyond the target's range become infinite and NaN stays
// NaN.
void ConvertElements(DType from, const std::byte* src, DType to, std::byte* dst, size_t num_elements);

}  // namespace switchyard
