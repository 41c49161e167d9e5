// A worked example of custom_expert.h: the feed-forward part of Primer (So et al., 2021) and of models after it,
//
//   expert(x) = down · max(0, up · x + b_up)² + b_down
//
// Every worker that links this file offers it as "squared_relu". It uses the up and down tensors and their biases where
// there are any, and refuses a gate.
#include <memory>
#include <utility>

#include "base/tensor/buffer.h"
#include "base/tensor/convert.h"
#include "moe/experts/custom_expert.h"
#include "moe/linear/packed_linear.h"
#include "moe/linear/parallel.h"

namespace switchyard {
namespace {

template <typename T>
void SquareRelu(T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T x = values[i] < 0 ? 0 : values[i];  // NaN stays NaN
    values[i] = x * x;
  }
}

class SquaredReluExpert final : public HostExpert {
 public:
  static absl::StatusOr<std::unique_ptr<HostExpert>> Make(const HostExpertContext& context, const LayerSpec& layer,
                                                          const ExpertWeights& weights) {
    if (layer.expert.gated || weights.gate.present()) {
      return absl::InvalidArgumentError("gate: squared_relu experts have none");
    }
    auto expert = std::unique_ptr<SquaredReluExpert>(new SquaredReluExpert(context));
    SY_ASSIGN_OR_RETURN(expert->up_,
                        PackedLinear::Create(context.linear, context.compute_dtype, weights.up, weights.up_bias));
    SY_ASSIGN_OR_RETURN(expert->down_,
                        PackedLinear::Create(context.linear, context.compute_dtype, weights.down, weights.down_bias));
    return expert;
  }

  absl::Status Run(ConstMatrixView x, MatrixView y) override {
    // Squaring doubles a relative rounding error, so the unrounded sums are squared.
    const MatrixView sums = RowsIn(&sums_, SumDType(context_.compute_dtype), x.num_rows);
    SY_RETURN_IF_ERROR(up_->Run(x, {}, sums));
    const MatrixView inner = RowsIn(&inner_, context_.compute_dtype, x.num_rows);
    ParallelFor(context_.linear->num_threads(), x.num_rows, [&](int64_t i) {
      if (sums.dtype == DType::kF64) {
        SquareRelu(reinterpret_cast<double*>(sums.row(i)), sums.num_cols);
      } else {
        SquareRelu(reinterpret_cast<float*>(sums.row(i)), sums.num_cols);
      }
      ConvertElements(sums.dtype, sums.row(i), inner.dtype, inner.row(i), inner.num_cols);
    });
    return down_->Run(inner, {}, y);
  }

  int64_t weight_bytes() const override { return up_->packed_bytes() + down_->packed_bytes(); }

  absl::Status Prepare() override {
    const DType sum = SumDType(context_.compute_dtype);
    SY_RETURN_IF_ERROR(up_->Prepare({}, sum));
    return down_->Prepare({}, sum);
  }

 private:
  explicit SquaredReluExpert(const HostExpertContext& context) : context_(context) {}

  MatrixView RowsIn(HostBuffer* buffer, DType dtype, int64_t num_rows) const {
    MatrixView rows{nullptr, dtype, num_rows, up_->out_features()};
    buffer->EnsureSize(rows.size_bytes());
    rows.data = buffer->data();
    return rows;
  }

  const HostExpertContext context_;
  std::unique_ptr<PackedLinear> up_, down_;
  HostBuffer sums_, inner_;  // [N, H]
};

const absl::Status registered = RegisterCustomExpert("squared_relu", SquaredReluExpert::Make);

}  // namespace
}  // namespace switchyard
