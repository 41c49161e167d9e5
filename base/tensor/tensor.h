// Non-owning views of row-major memory. Hidden states are always matrices: rows × columns, contiguous.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/tensor/dtype.h"

namespace switchyard {

// A contiguous row-major matrix [num_rows, num_cols] in host or device memory that the view does not own.
template <typename Byte>
struct BasicMatrixView {
  Byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t num_rows = 0;
  int64_t num_cols = 0;

  size_t row_bytes() const { return static_cast<size_t>(num_cols) * SizeOf(dtype); }
  size_t size_bytes() const { return static_cast<size_t>(num_rows) * row_bytes(); }
  Byte* row(int64_t row_idx) const { return data + static_cast<size_t>(row_idx) * row_bytes(); }

  // Rows [begin, begin + count).
  BasicMatrixView Rows(int64_t begin, int64_t count) const {
    assert(begin >= 0 && count >= 0 && begin + count <= num_rows);
    return {row(begin), dtype, count, num_cols};
  }

  template <typename T>
  auto* as() const {
    if constexpr (std::is_const_v<Byte>) {
      return reinterpret_cast<const T*>(data);
    } else {
      return reinterpret_cast<T*>(data);
    }
  }

  operator BasicMatrixView<const Byte>() const { return {data, dtype, num_rows, num_cols}; }
};

using MatrixView = BasicMatrixView<std::byte>;
using ConstMatrixView = BasicMatrixView<const std::byte>;

}  // namespace switchyard
