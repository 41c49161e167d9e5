// One expert's packed weights and its forward pass on a tile of rows.
//
// Thread-safety: that of the LinearContext, which must outlive every expert made with it.
#pragma once

#include <memory>

#include "moe/base/status.h"
#include "moe/linear/packed_linear.h"
#include "moe/tensor/buffer.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// Type of sums and of an expert's output: fp64 when computing in fp64, fp32 otherwise.
DType SumDType(DType compute);

// What lies between the GEMMs of an expert; shared by all, as one runs at a time.
struct ExpertScratch {
  HostBuffer up;     // [N, H], SumDType
  HostBuffer inner;  // [N, H], compute type
};

class CpuExpert {
 public:
  // INVALID_ARGUMENT names the tensor that is missing or whose shape does not fit `layer`.
  static absl::StatusOr<std::unique_ptr<CpuExpert>> Load(LinearContext* context, DType compute, const LayerSpec& layer,
                                                         const ExpertWeights& weights);

  int64_t weight_bytes() const;

  // y [N, D] of SumDType = expert(x), x [N, D] of the compute type, not weighted.
  absl::Status Run(ConstMatrixView x, ExpertScratch* scratch, MatrixView y) const;

  // Compiles everything that Run needs for any N. Shared by all experts of this shape.
  absl::Status Prepare() const;

 private:
  explicit CpuExpert(Activation activation) : activation_(activation) {}

  const Activation activation_;
  std::unique_ptr<PackedLinear> up_, gate_, down_;  // gate_ is null in a plain expert
};

}  // namespace switchyard
