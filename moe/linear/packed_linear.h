// A linear layer whose weights are packed once, at load, into the layout that the CPU library multiplies fastest:
//
//   y[M, N] = activation(x[M, K] · W^T + bias) ⊙ multiplier[M, N]
//
// Bias is fixed at creation; activation and multiplier may differ from call to call and cost no pass of their own: the
// inner half of a gated expert is two calls, u = x·Wu^T and then h = act(x·Wg^T) ⊙ u.
//
//   compute type   x      multiplier   y            accumulation   library
//   fp64           fp64   fp64         fp64         fp64           OpenBLAS
//   fp32           fp32   fp32         fp32         fp32           oneDNN
//   bf16           bf16   fp32, bf16   fp32, bf16   fp32           oneDNN
//
// M may differ from call to call. Thread-safety: that of the LinearContext, which must outlive every linear made with
// it.
#pragma once

#include <memory>
#include <optional>

#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/linear/linear_context.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// The operations on x·W^T + bias before it is stored, in this order.
struct LinearEpilogue {
  std::optional<Activation> activation;
  ConstMatrixView multiplier;  // [M, N]; data == nullptr for none. May not overlap y.
};

class PackedLinear {
 public:
  // Converts and packs `weight` ([N, K], or [K, N] when transposed) and copies `bias` ([1, N], or data == nullptr),
  // both of any type; neither is used afterwards. The weights of a matrix exist twice only while this runs.
  // UNIMPLEMENTED when `compute` is fp16, or bf16 on a CPU for which oneDNN has no bf16 code.
  static absl::StatusOr<std::unique_ptr<PackedLinear>> Create(LinearContext* context, DType compute,
                                                              const WeightView& weight, ConstMatrixView bias);
  virtual ~PackedLinear() = default;

  DType compute_dtype() const { return compute_; }
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }

  // Memory held: the packed weights, padding included, and the bias.
  virtual int64_t packed_bytes() const = 0;

  // INVALID_ARGUMENT names the matrix whose shape or type does not fit. M may be 0.
  absl::Status Run(ConstMatrixView x, const LinearEpilogue& epilogue, MatrixView y) const;

  // Compiles in advance what Run would compile at the first use of each M. Only the presence and the types of
  // `epilogue`'s parts count, not their data. All linears of this shape share the result.
  virtual absl::Status Prepare(const LinearEpilogue& epilogue, DType y_dtype) const = 0;

 protected:
  PackedLinear(DType compute, int64_t in_features, int64_t out_features)
      : compute_(compute), in_features_(in_features), out_features_(out_features) {}

 private:
  // One chunk of NextChunkRows rows, already checked.
  virtual absl::Status RunChunk(ConstMatrixView x, const LinearEpilogue& epilogue, MatrixView y) const = 0;

  const DType compute_;
  const int64_t in_features_;
  const int64_t out_features_;
};

}  // namespace switchyard
