// y[M, N] = x[M, K] · W^T in fp32, for many threads at once: the linear for callers that split the work themselves.
//
// The output columns are cut into slices of kSliceColumns, each packed by itself, so that work can be shared out by
// rows, by slices or by both. Everything is compiled at creation, for one thread and for a few numbers of rows. Any
// other number of rows is put together from those, so no call is slow because it is the first of its size.
//
//   compute type   x      accumulation, y   columns of a slice, and rows   by
//   fp32           fp32   fp32              any                            oneDNN
//   bf16           bf16   fp32              1 to 8                         few_columns.h
//                                           9 to 16, or 1 to 15 rows       few_rows.h
//                                           others                         oneDNN
// Without the CPU's bf16 products oneDNN does all, and computes whole blocks of 64 columns, however few are wanted.
//
// Thread-safety: after creation any number of threads may call Run, each with a Scratch of its own.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/tensor/buffer.h"
#include "base/tensor/tensor.h"
#include "dnnl.hpp"
#include "moe/linear/linear_context.h"
#include "moe/linear/matmul_shape.h"

namespace switchyard {

inline constexpr int64_t kSliceColumns = 64;

class SlicedLinear {
 public:
  // Working memory of one thread while it runs; any linear may use it.
  class Scratch {
   public:
    explicit Scratch(LinearContext* context);

   private:
    friend class SlicedLinear;
    dnnl::stream stream_;
    HostBuffer library_;  // oneDNN's own working memory
    HostBuffer y_;        // rows of a slice, dense
  };

  // Converts and packs `weight` [N, K], which is not used afterwards. UNIMPLEMENTED when oneDNN has no code for
  // `compute`, fp32 or bf16, on this CPU. The context must outlive the linear.
  static absl::StatusOr<std::unique_ptr<SlicedLinear>> Create(LinearContext* context, DType compute,
                                                              ConstMatrixView weight);

  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }
  int num_slices() const { return static_cast<int>(slices_.size()); }
  int64_t packed_bytes() const;

  // Computes columns [64 · first_slice, 64 · (first_slice + num_slices)) of y, whose rows lie out_features() floats
  // apart, beginning at `y`. x is [M, in_features()] of the compute type, which is not checked.
  absl::Status Run(ConstMatrixView x, int first_slice, int num_slices, float* y, Scratch* scratch) const;

 private:
  static constexpr std::array<int64_t, 9> kPieceRows = {256, 128, 64, 32, 16, 8, 4, 2, 1};
  static constexpr int64_t kFewRows = 16;  // few_rows.h multiplies fewer rows than this, where it can be used
  static constexpr int64_t kNarrow = 16;   // and any number of rows, when a slice has at most so many columns

  enum class Kernel { kLibrary, kFewRows, kFewColumns };

  struct Slice {
    int64_t num_cols = 0;
    Kernel other = Kernel::kLibrary;  // multiplies the rows that `kernels` leave
    HostBuffer packed;                // from PackFewColumns for kFewColumns, else in the library's layout
    std::array<const MatmulKernel*, kPieceRows.size()> kernels{};  // null for sizes never needed
  };

  SlicedLinear(LinearContext* context, DType compute, ConstMatrixView weight)
      : context_(context), compute_(compute), in_features_(weight.num_cols), out_features_(weight.num_rows) {}

  absl::StatusOr<Slice> MakeSlice(ConstMatrixView weight) const;
  Slice MakeFewColumnsSlice(ConstMatrixView weight) const;
  absl::Status RunSlice(const Slice& slice, ConstMatrixView x, float* y, Scratch* scratch) const;
  absl::Status RunPiece(const Slice& slice, const MatmulKernel& kernel, ConstMatrixView x, float* y,
                        Scratch* scratch) const;
  void RunOther(const Slice& slice, ConstMatrixView x, float* y) const;

  LinearContext* const context_;
  const DType compute_;
  const int64_t in_features_;
  const int64_t out_features_;
  std::vector<Slice> slices_;  // constant after Create
};

}  // namespace switchyard
