// A matrix inside a stored tensor: where it lies, how it is encoded and which of its rows and columns are meant. It is
// handed out as a view of the file where the bytes allow, and otherwise brought into contiguous form.
//
// The stored block is [num_rows, num_cols]. The part taken is every `step`-th row (or column) from `first` on.
#pragma once

#include <memory>
#include <vector>

#include "base/tensor/buffer.h"
#include "moe/weights/checkpoint/safetensors.h"

namespace switchyard {

enum class Encoding : uint8_t {
  kPlain = 0,
  kFp8 = 1,    // one byte an element, a scale per block of rows and columns
  kMxfp4 = 2,  // half a byte an element, a scale per 32 elements of a row
};

// Rows or columns first, first + step, …: `count` of them; then zeros up to `padded`.
struct Stride {
  int64_t first = 0;
  int64_t step = 1;
  int64_t count = 0;
  int64_t padded = 0;

  static Stride All(int64_t count) { return {0, 1, count, count}; }
  static Stride Part(int64_t first, int64_t count) { return {first, 1, count, count}; }
};

// The scales of a quantised block, row-major, stored beside it.
struct StoredScales {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;  // of the scales of kFp8; those of kMxfp4 are bytes
  int64_t rows_per_scale = 1;
  int64_t cols_per_scale = 1;
  const SafetensorsFile* file = nullptr;
};

// Bytes live as long as `file`. Copyable; thread-safe to read.
struct StoredMatrix {
  const std::byte* data = nullptr;  // of the block; nullptr: there is no such matrix
  Encoding encoding = Encoding::kPlain;
  DType dtype = DType::kF32;  // of an element; for quantised ones the type they are widened to
  int64_t num_rows = 0;       // of the block
  int64_t num_cols = 0;
  Stride rows, cols;        // the part taken
  bool transposed = false;  // [in, out] instead of [out, in]
  const SafetensorsFile* file = nullptr;
  StoredScales scales;

  bool present() const { return data != nullptr; }
  size_t block_bytes() const;
  // Part of the output features, or of the input features.
  StoredMatrix Outputs(Stride outputs) const;
  StoredMatrix Inputs(Stride inputs) const;
};

// The matrix in `dtype`: a view of the file, or a copy added to `owned`. Without data when the matrix is absent.
ConstMatrixView ViewOf(const StoredMatrix& stored, DType dtype, std::vector<std::shared_ptr<const HostMatrix>>* owned);

// A copy in any case.
HostMatrix CopyOf(const StoredMatrix& stored, DType dtype);
std::vector<float> FloatsOf(const StoredMatrix& stored);

// Reads the whole block into memory, its scales too; undone by ReleaseStored. DATA_LOSS names file and bytes.
absl::Status PopulateStored(const StoredMatrix& stored);

// Gives the whole block's memory back to the system, its scales' too.
void ReleaseStored(const StoredMatrix& stored);

}  // namespace switchyard
