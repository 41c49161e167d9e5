#include "moe/gating/router.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/tensor/convert.h"

namespace switchyard {
namespace {

constexpr double kMinNorm = 1e-12;  // torch's normalize

absl::Status CheckShape(std::string_view what, const HostMatrix& matrix, int64_t num_rows, int64_t num_cols) {
  if (matrix.num_rows == num_rows && matrix.num_cols == num_cols) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(std::string(what), " is [", matrix.num_rows, ", ", matrix.num_cols,
                                                 "], expected [", num_rows, ", ", num_cols, "]"));
}

absl::Status CheckLength(std::string_view what, const std::vector<float>& values, int64_t expected) {
  if (values.empty() || static_cast<int64_t>(values.size()) == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(what), " has ", values.size(), " values, expected ", expected));
}

absl::Status CheckCosine(const LayerSpec& layer, const RouterWeights& weights) {
  SY_RETURN_IF_ERROR(CheckShape("router's projector", weights.projector, weights.projector.num_rows, layer.hidden_dim));
  SY_RETURN_IF_ERROR(CheckShape("cosine router", weights.weight, layer.num_experts, weights.projector.num_rows));
  SY_RETURN_IF_ERROR(CheckLength("bias of the router's projector", weights.projector_bias, weights.projector.num_rows));
  if (!layer.shared_gated) return absl::OkStatus();
  return absl::InvalidArgumentError("a gated shared expert beside a cosine router, expected a linear router");
}

absl::Status CheckWeights(const LayerSpec& layer, const RouterWeights& weights) {
  SY_RETURN_IF_ERROR(CheckLength("bias of the router", weights.bias, layer.num_experts));
  if (weights.is_cosine()) return CheckCosine(layer, weights);
  SY_RETURN_IF_ERROR(CheckShape("router", weights.weight, layer.num_experts, layer.hidden_dim));
  if (!layer.shared_gated) return absl::OkStatus();
  return CheckShape("shared expert's gate", weights.shared_gate, 1, layer.hidden_dim);
}

void ConvertRows(const HostMatrix& from, int64_t first_row, HostMatrix* to) {
  ConvertElements(from.dtype, from.buffer.data(), to->dtype, to->view().row(first_row), from.num_rows * from.num_cols);
}

// Both matrices' rows, in their type, or in fp32 where their types differ.
HostMatrix Stack(const HostMatrix& upper, const HostMatrix& lower) {
  const DType dtype = upper.dtype == lower.dtype ? upper.dtype : DType::kF32;
  HostMatrix stacked = HostMatrix::Allocate(dtype, upper.num_rows + lower.num_rows, upper.num_cols);
  ConvertRows(upper, 0, &stacked);
  ConvertRows(lower, upper.num_rows, &stacked);
  return stacked;
}

double Norm(const float* values, int64_t size) {
  double sum = 0.0;
  for (int64_t i = 0; i < size; ++i) sum += double{values[i]} * values[i];
  return std::max(std::sqrt(sum), kMinNorm);
}

void ScaleRow(double factor, float* values, int64_t size) {
  for (int64_t i = 0; i < size; ++i) values[i] = static_cast<float>(values[i] * factor);
}

HostMatrix NormalizedRows(const HostMatrix& matrix) {
  HostMatrix normalized = HostMatrix::Allocate(DType::kF32, matrix.num_rows, matrix.num_cols);
  ConvertRows(matrix, 0, &normalized);
  for (int64_t row_idx = 0; row_idx < matrix.num_rows; ++row_idx) {
    float* const row = normalized.view().as<float>() + row_idx * matrix.num_cols;
    ScaleRow(1.0 / Norm(row, matrix.num_cols), row, matrix.num_cols);
  }
  return normalized;
}

void AddToRows(const std::vector<float>& bias, int64_t num_rows, int64_t stride, float* rows) {
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    float* const row = rows + row_idx * stride;
    for (size_t i = 0; i < bias.size(); ++i) row[i] += bias[i];
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> Router::Create(LinearContext* context, const LayerSpec& layer,
                                                       const RouterWeights& weights) {
  SY_RETURN_IF_ERROR(CheckWeights(layer, weights));
  auto router = std::unique_ptr<Router>(new Router(context, layer.num_experts));
  router->bias_ = weights.bias;
  router->has_shared_gate_ = layer.shared_gated;
  SY_RETURN_IF_ERROR(weights.is_cosine() ? router->PackCosine(weights) : router->PackLinear(weights));
  return router;
}

absl::Status Router::PackFirst(const HostMatrix& weight) {
  SY_ASSIGN_OR_RETURN(fp32_, SlicedLinear::Create(context_, DType::kF32, weight.view()));
  if (weight.dtype != DType::kBF16) return absl::OkStatus();
  auto bf16 = SlicedLinear::Create(context_, DType::kBF16, weight.view());
  // Without bf16 code for this CPU, only fp32 rows are accepted.
  if (bf16.status().code() == absl::StatusCode::kUnimplemented) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(bf16_, std::move(bf16));
  return absl::OkStatus();
}

absl::Status Router::PackLinear(const RouterWeights& weights) {
  if (!has_shared_gate_) return PackFirst(weights.weight);
  return PackFirst(Stack(weights.weight, weights.shared_gate));
}

absl::Status Router::PackCosine(const RouterWeights& weights) {
  projector_bias_ = weights.projector_bias;
  logit_scale_ = weights.logit_scale;
  const HostMatrix directions = NormalizedRows(weights.weight);
  SY_ASSIGN_OR_RETURN(cosine_, SlicedLinear::Create(context_, DType::kF32, directions.view()));
  return PackFirst(weights.projector);
}

const SlicedLinear* Router::LinearFor(DType dtype) const {
  if (dtype == DType::kF32) return fp32_.get();
  return dtype == DType::kBF16 ? bf16_.get() : nullptr;
}

int64_t Router::products_per_row() const {
  const int64_t second = cosine_ != nullptr ? cosine_->in_features() * cosine_->out_features() : 0;
  return fp32_->in_features() * fp32_->out_features() + second;
}

absl::Status Router::RunSlices(ConstMatrixView rows, int first_slice, int num_slices, float* y,
                               Scratch* scratch) const {
  return LinearFor(rows.dtype)->Run(rows, first_slice, num_slices, y, &scratch->linear);
}

absl::StatusOr<LogitRows> Router::Finish(float* y, int64_t num_rows, Scratch* scratch) const {
  if (cosine_ == nullptr) {
    AddToRows(bias_, num_rows, first_width(), y);
    return LogitRows{y, num_rows, num_experts_, first_width()};
  }
  const int64_t width = first_width();
  AddToRows(projector_bias_, num_rows, width, y);
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    float* const row = y + row_idx * width;
    ScaleRow(logit_scale_ / Norm(row, width), row, width);
  }
  scratch->logits.EnsureSize(num_rows * num_experts_ * sizeof(float));
  float* const logits = reinterpret_cast<float*>(scratch->logits.data());
  const ConstMatrixView directions{reinterpret_cast<const std::byte*>(y), DType::kF32, num_rows, width};
  SY_RETURN_IF_ERROR(cosine_->Run(directions, 0, cosine_->num_slices(), logits, &scratch->linear));
  AddToRows(bias_, num_rows, num_experts_, logits);
  return LogitRows{logits, num_rows, num_experts_, num_experts_};
}

}  // namespace switchyard
