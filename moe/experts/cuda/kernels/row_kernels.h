// Kernels that move and add rows: all work of a step that is not a matrix product. All are memory-bound and touch each
// row as few times as possible.
//
// Rows are matrices of `dtype` in device memory or, in small steps, in page-locked host memory, which the kernels
// access directly. Sums are fp32, and fp64 for fp64 rows. Each function enqueues one kernel on `stream`, and does
// nothing for zero rows. `early` lets the kernel start before the previous one has finished; it then waits by itself
// before it touches rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/experts/cuda/kernels/inner_formula.h"

namespace switchyard {

// Lists, for every row i of one matrix, the rows of another that belong to it: indices[offsets[i] … offsets[i + 1]), in
// order, with a weight each (all 1 when `weights` is null). In device memory.
struct RowLists {
  const int32_t* offsets = nullptr;  // [num_rows + 1]
  const int32_t* indices = nullptr;
  const float* weights = nullptr;
};

// grouped[index] = weight · rows[i] for every index in the list of every row i. Columns from the width of `rows` to
// `pitch` become zero. Without weights rows are copied bit for bit.
absl::Status ScatterRows(ConstMatrixView rows, const RowLists& lists, void* grouped, int64_t pitch,
                         cudaStream_t stream);

// sums[i] = Σ weight · addends[index] over the list of row i; zero for an empty list. Rows of `addends` are `pitch`
// elements apart.
absl::Status SumRows(const void* addends, int64_t pitch, const RowLists& lists, MatrixView sums, bool early,
                     cudaStream_t stream);

// out[i] = rows[indices[i]].
absl::Status GatherRows(ConstMatrixView rows, const int32_t* indices, MatrixView out, cudaStream_t stream);

// Applies bias and activation to grouped rows of one expert, where the matrix product does not do so:
// out[p, h] = act(products[p, h] + bias[h]). If gated, out[p, h] is the form of inner_formula.h with
// gate = products[p, h] + bias[h] and up = products[p, pitch + h] + bias[pitch + h]. Rows of `products` are
// `product_pitch` elements apart, rows of `out` `pitch`; columns of `out` from `width` to `pitch` become zero. `bias`
// is null or has as many elements as a row of `products`, in fp32, or fp64 for fp64 rows.
struct ActivateArgs {
  DType dtype = DType::kF32;
  InnerForm form = InnerForm::kNone;
  SwishConstants<double> swish;  // for kSwish
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
