#include "moe/linear/blas_linear.h"

#include <cblas.h>

#include <cmath>

#include "base/tensor/convert.h"
#include "moe/linear/parallel.h"

namespace switchyard {
namespace {

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x * M_SQRT1_2));
    case Activation::kRelu:
      return x < 0.0 ? 0.0 : x;  // NaN stays NaN
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
  }
  return x;
}

const double* Doubles(const std::byte* data) { return reinterpret_cast<const double*>(data); }

HostBuffer ToDoubles(ConstMatrixView matrix) {
  const size_t num_elements = static_cast<size_t>(matrix.num_rows) * matrix.num_cols;
  HostBuffer buffer(num_elements * sizeof(double));
  ConvertElements(matrix.dtype, matrix.data, DType::kF64, buffer.data(), num_elements);
  return buffer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackedLinear>> BlasLinear::Create(LinearContext* context, const WeightView& weight,
                                                                 ConstMatrixView bias) {
  return std::unique_ptr<PackedLinear>(new BlasLinear(context, weight, bias));
}

BlasLinear::BlasLinear(LinearContext* context, const WeightView& weight, ConstMatrixView bias)
    : PackedLinear(DType::kF64, weight.transposed ? weight.matrix.num_rows : weight.matrix.num_cols,
                   weight.transposed ? weight.matrix.num_cols : weight.matrix.num_rows),
      num_threads_(context->num_threads()),
      transposed_(weight.transposed),
      weight_(ToDoubles(weight.matrix)) {
  if (bias.data != nullptr) bias_ = ToDoubles(bias);
}

void BlasLinear::FinishRow(const double* multiplier, const LinearEpilogue& epilogue, double* y) const {
  const double* bias = bias_.size() != 0 ? Doubles(bias_.data()) : nullptr;
  for (int64_t i = 0; i < out_features(); ++i) {
    double value = y[i];
    if (bias != nullptr) value += bias[i];
    if (epilogue.activation.has_value()) value = Activate(*epilogue.activation, value);
    y[i] = multiplier != nullptr ? value * multiplier[i] : value;
  }
}

absl::Status BlasLinear::RunChunk(ConstMatrixView x, const LinearEpilogue& epilogue, MatrixView y) const {
  const int64_t stride = transposed_ ? out_features() : in_features();
  // One thread under ThreadSanitizer, which sees as little of OpenBLAS's threads as of OpenMP's.
  openblas_set_num_threads(kLoopsAreParallel ? num_threads_ : 1);
  cblas_dgemm(CblasRowMajor, CblasNoTrans, transposed_ ? CblasNoTrans : CblasTrans, x.num_rows, out_features(),
              in_features(), 1.0, x.as<double>(), in_features(), Doubles(weight_.data()), stride, 0.0, y.as<double>(),
              out_features());
  const bool multiplies = epilogue.multiplier.data != nullptr;
  if (bias_.size() == 0 && !epilogue.activation.has_value() && !multiplies) return absl::OkStatus();
  ParallelFor(num_threads_, x.num_rows, [&](int64_t row_idx) {
    const std::byte* multiplier = multiplies ? epilogue.multiplier.row(row_idx) : nullptr;
    FinishRow(Doubles(multiplier), epilogue, reinterpret_cast<double*>(y.row(row_idx)));
  });
  return absl::OkStatus();
}

}  // namespace switchyard
