// PackedLinear for fp64, on OpenBLAS's dgemm. The weights stay a plain row-major matrix.
#pragma once

#include <memory>

#include "base/tensor/buffer.h"
#include "moe/linear/packed_linear.h"

namespace switchyard {

class BlasLinear final : public PackedLinear {
 public:
  static absl::StatusOr<std::unique_ptr<PackedLinear>> Create(LinearContext* context, const WeightView& weight,
                                                              ConstMatrixView bias);

  int64_t packed_bytes() const override { return weight_.size() + bias_.size(); }
  absl::Status Prepare(const LinearEpilogue&, DType) const override { return absl::OkStatus(); }

 private:
  BlasLinear(LinearContext* context, const WeightView& weight, ConstMatrixView bias);

  absl::Status RunChunk(ConstMatrixView x, const LinearEpilogue& epilogue, MatrixView y) const override;
  void FinishRow(const double* multiplier, const LinearEpilogue& epilogue, double* y) const;

  const int num_threads_;
  const bool transposed_;  // weight_ is [K, N] instead of [N, K]
  HostBuffer weight_;
  HostBuffer bias_;  // [N], empty for none
};

}  // namespace switchyard
