// Converts weights from a checkpoint's layout to an engine's, on the GPU: a stretch of source rows arrives in device
// memory, and one kernel converts, transposes and places it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "base/tensor/dtype.h"

namespace switchyard {

// How the outputs of a source matrix are placed as rows of the packed matrix.
enum class RowPlace : uint8_t {
  kPlain = 0,  // output o is row first_row + o
  kGate = 1,   // interleaved with up (layouts.h)
  kUp = 2,
};

// The packed matrix of one expert: packed blocks of 16-bit elements (layouts.h) or, with k_blocks = 0, row-major rows
// of `pitch` elements. Padding is not written.
struct PackTarget {
  DType dtype = DType::kBF16;
  void* weights = nullptr;
  int64_t k_blocks = 0;
  int64_t pitch = 0;
  RowPlace place = RowPlace::kPlain;
  int64_t first_row = 0;
};

// Rows [first_row, first_row + num_rows) of a stored matrix [total rows, num_cols], at `data` in device memory.
// Transposed matrices are [in, out], others [out, in]; a transposed stretch must start at a multiple of 8.
struct SourceRows {
  DType dtype = DType::kF32;
  const void* data = nullptr;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  int64_t num_cols = 0;
  bool transposed = false;
};

absl::Status PackRows(const SourceRows& source, const PackTarget& target, cudaStream_t stream);

// Places the bias of packed rows in `out`, as `out_dtype` (fp32 or fp64). `place` and `first_row` are as in PackTarget.
absl::Status PackBias(DType dtype, const void* bias, int64_t num_outputs, RowPlace place, int64_t first_row,
                      DType out_dtype, void* out, cudaStream_t stream);

}  // namespace switchyard
