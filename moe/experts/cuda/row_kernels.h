// Kernels that move and add rows: everything of a step that is not a matrix product. All are bound by memory and touch
// each row as few times as they can.
//
// Rows are matrices in device memory (or page-locked host memory, which small steps are read from and written to
// directly) of `dtype`; sums are fp32, fp64 for fp64 rows. Each function enqueues one kernel on `stream` and does
// nothing for zero rows. `early` lets the kernel start before the one before it has finished (it waits by itself
// before it touches rows).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/experts/cuda/inner_formula.h"

namespace switchyard {

// For every row of one side, which rows of the other belong to it: those at indices[offsets[i] … offsets[i + 1]), in
// order, with a weight each (all 1 when `weights` is null). Device memory.
struct RowLists {
  const int32_t* offsets = nullptr;  // [num_rows + 1]
  const int32_t* indices = nullptr;
  const float* weights = nullptr;
};

// grouped[indices of i] = weight · rows[i] for every row; columns from the width to `pitch` become zero. Without
// weights rows are copied bit for bit.
absl::Status ScatterRows(ConstMatrixView rows, const RowLists& lists, void* grouped, int64_t pitch,
                         cudaStream_t stream);

// sums[i] = Σ weight · addends[index], rows of `addends` being `pitch` elements apart; zero for an empty list.
absl::Status SumRows(const void* addends, int64_t pitch, const RowLists& lists, MatrixView sums, bool early,
                     cudaStream_t stream);

// out[i] = rows[indices[i]].
absl::Status GatherRows(ConstMatrixView rows, const int32_t* indices, MatrixView out, cudaStream_t stream);

// For engines whose matrix products cannot apply it: out[p, h] = act(products[p, h] + bias[h]), or, gated, the form of
// inner_formula.h with gate products[p, h] + bias[h] and up products[p, pitch + h] + bias[pitch + h], for grouped rows
// of one expert. `products` rows are `product_pitch` elements, `out` rows `pitch`; columns from `width` to `pitch`
// become zero. `bias` (null, or as many elements as a row of `products`) is fp32, fp64 for fp64 rows.
struct ActivateArgs {
  DType dtype = DType::kF32;
  InnerForm form = InnerForm::kNone;
  SwishConstants<double> swish;  // of kSwish
  bool gated = false;
  const void* products = nullptr;
  int64_t product_pitch = 0;
  void* out = nullptr;
  int64_t pitch = 0;
  int64_t width = 0;
  int64_t num_rows = 0;
  const void* bias = nullptr;
};
absl::Status ActivateRows(const ActivateArgs& args, cudaStream_t stream);

}  // namespace switchyard
