#include "moe/linear/sliced_linear.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/tensor/convert.h"
#include "moe/linear/bf16_products.h"
#include "moe/linear/dnnl_status.h"
#include "moe/linear/few_columns.h"
#include "moe/linear/few_rows.h"
#include "moe/linear/linear_context_impl.h"
#include "moe/linear/pack_weights.h"
#include "moe/linear/parallel.h"

namespace switchyard {
namespace {

using dnnl::memory;

// Whether few_rows.h reads the packed weights of `shape`.
bool IsFewRowsBlock(const MatmulShape& shape) {
  if (shape.compute_dtype() != DType::kBF16 || shape.in_features() % 2 != 0 || !HasBf16Products()) return false;
  const memory::desc wanted({shape.in_features(), shape.out_features()}, memory::data_type::bf16,
                            memory::format_tag::BA16a64b2a);
  return shape.out_features() <= kFewRowsBlock && shape.weights_desc() == wanted;
}

}  // namespace

SlicedLinear::Scratch::Scratch(LinearContext* context) : stream_(context->impl().engine) {}

absl::StatusOr<std::unique_ptr<SlicedLinear>> SlicedLinear::Create(LinearContext* context, DType compute,
                                                                   ConstMatrixView weight) {
  omp_set_num_threads(1);
  auto linear = std::unique_ptr<SlicedLinear>(new SlicedLinear(context, compute, weight));
  for (int64_t begin = 0; begin < weight.num_rows; begin += kSliceColumns) {
    const int64_t num_cols = std::min(kSliceColumns, weight.num_rows - begin);
    SY_ASSIGN_OR_RETURN(Slice slice, linear->MakeSlice(weight.Rows(begin, num_cols)));
    linear->slices_.push_back(std::move(slice));
  }
  return linear;
}

absl::StatusOr<SlicedLinear::Slice> SlicedLinear::MakeSlice(ConstMatrixView weight) const {
  if (compute_ == DType::kBF16 && weight.num_rows <= kFewColumns && HasBf16Products()) {
    return MakeFewColumnsSlice(weight);
  }
  SY_ASSIGN_OR_RETURN(MatmulShape * shape, context_->impl().ShapeFor(compute_, weight.num_cols, weight.num_rows, 1));
  Slice slice{.num_cols = weight.num_rows, .other = IsFewRowsBlock(*shape) ? Kernel::kFewRows : Kernel::kLibrary};
  SY_ASSIGN_OR_RETURN(slice.packed, PackWeights(context_, *shape, {weight, /*transposed=*/false}));
  for (size_t i = 0; i < kPieceRows.size(); ++i) {
    const bool is_small = kPieceRows[i] < kFewRows || slice.num_cols <= kNarrow;
    if (slice.other == Kernel::kFewRows && is_small) break;
    SY_ASSIGN_OR_RETURN(slice.kernels[i], shape->KernelFor({.num_rows = kPieceRows[i], .y_dtype = DType::kF32}));
  }
  return slice;
}

SlicedLinear::Slice SlicedLinear::MakeFewColumnsSlice(ConstMatrixView weight) const {
  const int num_cols = static_cast<int>(weight.num_rows);
  HostMatrix converted = HostMatrix::Allocate(compute_, weight.num_rows, weight.num_cols);
  ConvertElements(weight.dtype, weight.data, compute_, converted.buffer.data(), weight.num_rows * weight.num_cols);
  Slice slice{.num_cols = num_cols, .other = Kernel::kFewColumns};
  slice.packed = HostBuffer(PackedFewColumns(weight.num_cols, num_cols) * sizeof(uint16_t));
  PackFewColumns(converted.view().as<uint16_t>(), weight.num_cols, num_cols,
                 reinterpret_cast<uint16_t*>(slice.packed.data()));
  return slice;
}

int64_t SlicedLinear::packed_bytes() const {
  int64_t total = 0;
  for (const Slice& slice : slices_) total += slice.packed.size();
  return total;
}

absl::Status SlicedLinear::Run(ConstMatrixView x, int first_slice, int num_slices, float* y, Scratch* scratch) const {
  omp_set_num_threads(1);  // for oneDNN, which reads this setting of the calling thread
  for (int i = first_slice; i < first_slice + num_slices; ++i) {
    SY_RETURN_IF_ERROR(RunSlice(slices_[i], x, y + i * kSliceColumns, scratch));
  }
  return absl::OkStatus();
}

absl::Status SlicedLinear::RunSlice(const Slice& slice, ConstMatrixView x, float* y, Scratch* scratch) const {
  int64_t begin = 0;
  for (size_t i = 0; i < kPieceRows.size() && slice.kernels[i] != nullptr; ++i) {
    for (; x.num_rows - begin >= kPieceRows[i]; begin += kPieceRows[i]) {
      SY_RETURN_IF_ERROR(
          RunPiece(slice, *slice.kernels[i], x.Rows(begin, kPieceRows[i]), y + begin * out_features_, scratch));
    }
  }
  if (begin < x.num_rows) RunOther(slice, x.Rows(begin, x.num_rows - begin), y + begin * out_features_);
  return absl::OkStatus();
}

absl::Status SlicedLinear::RunPiece(const Slice& slice, const MatmulKernel& kernel, ConstMatrixView x, float* y,
                                    Scratch* scratch) const {
  scratch->library_.EnsureSize(kernel.scratchpad_bytes);
  const size_t row_bytes = slice.num_cols * sizeof(float);
  const bool is_dense = slice.num_cols == out_features_;
  if (!is_dense) scratch->y_.EnsureSize(x.num_rows * row_bytes);
  std::byte* const dense = is_dense ? reinterpret_cast<std::byte*>(y) : scratch->y_.data();
  const auto execute = [&] {
    const auto bound = [&](const memory& like, const void* data) {
      // oneDNN's argument type is not const even for data that it only reads.
      return memory(like.get_desc(), context_->impl().engine, const_cast<void*>(data));
    };
    kernel.primitive.execute(scratch->stream_,
                             {{DNNL_ARG_SRC, bound(kernel.x, x.data)},
                              {DNNL_ARG_WEIGHTS, bound(kernel.weights, slice.packed.data())},
                              {DNNL_ARG_DST, bound(kernel.y, dense)},
                              {DNNL_ARG_SCRATCHPAD, bound(kernel.scratchpad, scratch->library_.data())}});
    scratch->stream_.wait();
  };
  SY_RETURN_IF_ERROR(SY_DNNL_CALL(execute()));
  if (is_dense) return absl::OkStatus();
  for (int64_t row_idx = 0; row_idx < x.num_rows; ++row_idx) {
    std::memcpy(y + row_idx * out_features_, dense + row_idx * row_bytes, row_bytes);
  }
  return absl::OkStatus();
}

void SlicedLinear::RunOther(const Slice& slice, ConstMatrixView x, float* y) const {
  const Bf16Product product = {.x = x.as<uint16_t>(),
                               .x_stride = in_features_,
                               .packed = reinterpret_cast<const uint16_t*>(slice.packed.data()),
                               .y = y,
                               .y_stride = out_features_,
                               .num_rows = x.num_rows,
                               .in_features = in_features_,
                               .num_cols = static_cast<int>(slice.num_cols)};
  if (slice.other == Kernel::kFewColumns) return MultiplyFewColumns(product);
  MultiplyFewRows(product);
}

}  // namespace switchyard
