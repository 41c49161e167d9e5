// One expert's packed weights and its forward pass on a tile of rows.
//
// Thread-safety: that of the LinearContext, which must outlive every expert made with it. Experts that share a scratch
// must run one at a time.
#pragma once

#include <memory>
#include <utility>

#include "base/status.h"
#include "base/tensor/buffer.h"
#include "moe/experts/cpu/row_kernels.h"
#include "moe/experts/custom_expert.h"
#include "moe/linear/packed_linear.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// Intermediate values between the GEMMs of an expert. All experts of an engine share one, because only one runs at a
// time.
struct ExpertScratch {
  HostBuffer gate;   // [N, H], SumDType; used by clamped experts only
  HostBuffer up;     // [N, H], SumDType
  HostBuffer inner;  // [N, H], compute type
};

class CpuExpert final : public HostExpert {
 public:
  // INVALID_ARGUMENT names a tensor that is missing or has a shape that does not fit `layer`. `layer` must have passed
  // CheckExpertFormula. `scratch` may be shared with other experts of the same engine.
  static absl::StatusOr<std::unique_ptr<HostExpert>> Load(const HostExpertContext& context, const LayerSpec& layer,
                                                          const ExpertWeights& weights,
                                                          std::shared_ptr<ExpertScratch> scratch);

  absl::Status Run(ConstMatrixView x, MatrixView y) override;
  int64_t weight_bytes() const override;
  // All experts of this shape share the compiled code.
  absl::Status Prepare() override;

 private:
  CpuExpert(const ExpertSpec& spec, int num_threads, std::shared_ptr<ExpertScratch> scratch)
      : spec_(spec), num_threads_(num_threads), scratch_(std::move(scratch)) {}

  // Each computes inner [N, H], the input of the down projection.
  absl::Status RunPlain(ConstMatrixView x, MatrixView inner) const;
  absl::Status RunGated(ConstMatrixView x, MatrixView inner) const;
  absl::Status RunClamped(ConstMatrixView x, MatrixView inner) const;

  const ExpertSpec spec_;
  const int num_threads_;
  const std::shared_ptr<ExpertScratch> scratch_;
  std::unique_ptr<PackedLinear> up_, gate_, down_;  // gate_ is null in a plain expert
};

}  // namespace switchyard
