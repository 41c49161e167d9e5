#include "moe/weights/storage/stored_matrix.h"

#include <algorithm>
#include <cstring>

#include "base/ceil_div.h"
#include "base/tensor/convert.h"
#include "moe/weights/storage/quantized.h"

namespace switchyard {
namespace {
size_t RowBytes(const StoredMatrix& stored) {
  switch (stored.encoding) {
    case Encoding::kPlain:
      return stored.num_cols * SizeOf(stored.dtype);
    case Encoding::kFp8:
      return stored.num_cols;
    case Encoding::kMxfp4:
      return stored.num_cols / 2;
  }
  return 0;
}

int64_t ScalesPerRow(const StoredMatrix& stored) { return CeilDiv(stored.num_cols, stored.scales.cols_per_scale); }

size_t ScaleBytes(const StoredMatrix& stored) {
  if (stored.encoding == Encoding::kPlain) return 0;
  const int64_t num_scales = CeilDiv(stored.num_rows, stored.scales.rows_per_scale) * ScalesPerRow(stored);
  return num_scales * (stored.encoding == Encoding::kMxfp4 ? 1 : SizeOf(stored.scales.dtype));
}

// Whether the part can be a view of the file: plain, of this type, contiguous, aligned and without padding.
bool IsView(const StoredMatrix& stored, DType dtype) {
  const bool whole_rows = stored.cols.count == stored.num_cols;
  const bool one_row = stored.rows.count == 1;
  return stored.encoding == Encoding::kPlain && stored.dtype == dtype && stored.cols.step == 1 &&
         (whole_rows || one_row) && (stored.rows.step == 1 || one_row) && stored.rows.padded == stored.rows.count &&
         stored.cols.padded == stored.cols.count && reinterpret_cast<uintptr_t>(stored.data) % SizeOf(dtype) == 0;
}

float ScaleAt(const StoredScales& scales, int64_t index) {
  float scale = 0;
  ConvertElements(scales.dtype, scales.data + index * SizeOf(scales.dtype), DType::kF32,
                  reinterpret_cast<std::byte*>(&scale), 1);
  return scale;
}

// Row `row_idx` of the block as bf16, all its columns.
void WidenRow(const StoredMatrix& stored, int64_t row_idx, uint16_t* out) {
  const auto* codes = reinterpret_cast<const uint8_t*>(stored.data + row_idx * RowBytes(stored));
  if (stored.encoding == Encoding::kMxfp4) {
    const int64_t num_groups = ScalesPerRow(stored);
    return WidenMxfp4(codes, reinterpret_cast<const uint8_t*>(stored.scales.data) + row_idx * num_groups, out,
                      num_groups);
  }
  const int64_t first_scale = row_idx / stored.scales.rows_per_scale * ScalesPerRow(stored);
  for (int64_t i = 0; i < ScalesPerRow(stored); ++i) {
    const int64_t begin = i * stored.scales.cols_per_scale;
    const int64_t count = std::min(stored.scales.cols_per_scale, stored.num_cols - begin);
    WidenFp8(codes + begin, ScaleAt(stored.scales, first_scale + i), out + begin, count);
  }
}

template <typename Element>
void PickStrided(const std::byte* row, const Stride& cols, std::byte* out) {
  for (int64_t i = 0; i < cols.count; ++i) {
    std::memcpy(out + i * sizeof(Element), row + (cols.first + i * cols.step) * sizeof(Element), sizeof(Element));
  }
}

// The wanted columns of one whole row.
void Pick(const std::byte* row, const Stride& cols, size_t element_bytes, std::byte* out) {
  if (cols.step == 1) {
    std::memcpy(out, row + cols.first * element_bytes, cols.count * element_bytes);
  } else if (element_bytes == 2) {
    PickStrided<uint16_t>(row, cols, out);
  } else if (element_bytes == 4) {
    PickStrided<uint32_t>(row, cols, out);
  } else {
    PickStrided<uint64_t>(row, cols, out);
  }
}

// The part taken, padded, in the stored (or widened) type.
HostMatrix Gather(const StoredMatrix& stored) {
  HostMatrix copy = HostMatrix::Allocate(stored.dtype, stored.rows.padded, stored.cols.padded);
  const size_t element_bytes = SizeOf(stored.dtype), out_row_bytes = copy.view().row_bytes();
  std::vector<uint16_t> widened(stored.encoding == Encoding::kPlain ? 0 : stored.num_cols);
  for (int64_t i = 0; i < stored.rows.count; ++i) {
    const int64_t row_idx = stored.rows.first + i * stored.rows.step;
    const std::byte* row = stored.data + row_idx * RowBytes(stored);
    if (stored.encoding != Encoding::kPlain) {
      WidenRow(stored, row_idx, widened.data());
      row = reinterpret_cast<const std::byte*>(widened.data());
    }
    std::byte* out = copy.view().row(i);
    Pick(row, stored.cols, element_bytes, out);
    std::memset(out + stored.cols.count * element_bytes, 0, out_row_bytes - stored.cols.count * element_bytes);
  }
  const size_t num_padding = (stored.rows.padded - stored.rows.count) * out_row_bytes;
  std::memset(copy.buffer.data() + stored.rows.count * out_row_bytes, 0, num_padding);
  return copy;
}

// The elements that `inner` takes of those that `outer` takes.
Stride Within(const Stride& outer, const Stride& inner) {
  return {outer.first + inner.first * outer.step, outer.step * inner.step, inner.count, inner.padded};
}

}  // namespace

size_t StoredMatrix::block_bytes() const { return num_rows * RowBytes(*this); }

StoredMatrix StoredMatrix::Outputs(Stride outputs) const {
  StoredMatrix part = *this;
  Stride& stride = transposed ? part.cols : part.rows;
  stride = Within(stride, outputs);
  return part;
}

StoredMatrix StoredMatrix::Inputs(Stride inputs) const {
  StoredMatrix part = *this;
  Stride& stride = transposed ? part.rows : part.cols;
  stride = Within(stride, inputs);
  return part;
}

ConstMatrixView ViewOf(const StoredMatrix& stored, DType dtype, std::vector<std::shared_ptr<const HostMatrix>>* owned) {
  if (!stored.present()) return {};
  if (IsView(stored, dtype)) {
    const std::byte* first = stored.data + stored.rows.first * RowBytes(stored) + stored.cols.first * SizeOf(dtype);
    return {first, dtype, stored.rows.count, stored.cols.count};
  }
  owned->push_back(std::make_shared<const HostMatrix>(CopyOf(stored, dtype)));
  return owned->back()->view();
}

HostMatrix CopyOf(const StoredMatrix& stored, DType dtype) {
  HostMatrix copy = Gather(stored);
  if (dtype == stored.dtype) return copy;
  HostMatrix converted = HostMatrix::Allocate(dtype, copy.num_rows, copy.num_cols);
  ConvertElements(copy.dtype, copy.buffer.data(), dtype, converted.buffer.data(), copy.num_rows * copy.num_cols);
  return converted;
}

std::vector<float> FloatsOf(const StoredMatrix& stored) {
  if (!stored.present()) return {};
  const HostMatrix copy = CopyOf(stored, DType::kF32);
  const auto* values = copy.view().as<float>();
  return {values, values + copy.num_rows * copy.num_cols};
}

absl::Status PopulateStored(const StoredMatrix& stored) {
  if (!stored.present()) return absl::OkStatus();
  SY_RETURN_IF_ERROR(stored.file->PopulatePages({stored.data, stored.block_bytes()}));
  if (stored.encoding == Encoding::kPlain) return absl::OkStatus();
  return stored.scales.file->PopulatePages({stored.scales.data, ScaleBytes(stored)});
}

void ReleaseStored(const StoredMatrix& stored) {
  if (!stored.present()) return;
  stored.file->ReleasePages({stored.data, stored.block_bytes()});
  if (stored.encoding != Encoding::kPlain) stored.scales.file->ReleasePages({stored.scales.data, ScaleBytes(stored)});
}

}  // namespace switchyard
