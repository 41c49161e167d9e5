// One expert's packed weights and its forward pass on a tile of rows.
//
// Thread-safety: that of the LinearContext, which must outlive every expert made with it; experts that share their
// scratch run one at a time.
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

// What lies between the GEMMs of an expert; shared by all of an engine, as one runs at a time.
struct ExpertScratch {
  HostBuffer gate;   // [N, H], SumDType; of clamped experts
  HostBuffer up;     // [N, H], SumDType
  HostBuffer inner;  // [N, H], compute type
};

class CpuExpert final : public HostExpert {
 public:
  // INVALID_ARGUMENT names the tensor that is missing or whose shape does not fit `layer`, which CheckExpertFormula has
  // passed. `scratch` may be that of other experts of the same engine.
  static absl::StatusOr<std::unique_ptr<HostExpert>> Load(const HostExpertContext& context, const LayerSpec& layer,
                                                          const ExpertWeights& weights,
                                                          std::shared_ptr<ExpertScratch> scratch);

  absl::Status Run(ConstMatrixView x, MatrixView y) override;
  int64_t weight_bytes() const override;
  // What it compiles is shared by all experts of this shape.
  absl::Status Prepare() override;

 private:
  CpuExpert(const ExpertSpec& spec, int num_threads, std::shared_ptr<ExpertScratch> scratch)
      : spec_(spec), num_threads_(num_threads), scratch_(std::move(scratch)) {}

  // inner [N, H] = what the down projection gets.
  absl::Status RunPlain(ConstMatrixView x, MatrixView inner) const;
  absl::Status RunGated(ConstMatrixView x, MatrixView inner) const;
  absl::Status RunClamped(ConstMatrixView x, MatrixView inner) const;

  const ExpertSpec spec_;
  const int num_threads_;
  const std::shared_ptr<ExpertScratch> scratch_;
  std::unique_ptr<PackedLinear> up_, gate_, down_;  // gate_ is null in a plain expert
};

}  // namespace switchyard
