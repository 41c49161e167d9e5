// PackedLinear for fp32 and bf16, on oneDNN's matmul.
#pragma once

#include <memory>

#include "moe/linear/linear_context_impl.h"
#include "moe/linear/packed_linear.h"

namespace switchyard {

class DnnlLinear final : public PackedLinear {
 public:
  static absl::StatusOr<std::unique_ptr<PackedLinear>> Create(LinearContext* context, DType compute,
                                                              const WeightView& weight, ConstMatrixView bias);

  int64_t packed_bytes() const override { return packed_.size() + bias_.size(); }
  absl::Status Prepare(const LinearEpilogue& epilogue, DType y_dtype) const override;

 private:
  DnnlLinear(LinearContext* context, MatmulShape* shape, DType compute, int64_t in_features, int64_t out_features)
      : PackedLinear(compute, in_features, out_features), context_(context), shape_(shape) {}

  MatmulVariant VariantOf(int64_t num_rows, const LinearEpilogue& epilogue, DType y_dtype) const;
  absl::Status RunChunk(ConstMatrixView x, const LinearEpilogue& epilogue, MatrixView y) const override;

  LinearContext* const context_;
  MatmulShape* const shape_;  // owned by context_
  HostBuffer packed_;         // constant after Create, in shape_'s layout
  HostBuffer bias_;           // fp32 [N], empty for none
};

}  // namespace switchyard
