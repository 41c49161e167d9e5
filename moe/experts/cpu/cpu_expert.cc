#include "moe/experts/cpu/cpu_expert.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/experts/check_layer.h"
#include "moe/linear/parallel.h"

namespace switchyard {
namespace {

std::string Shape(int64_t num_rows, int64_t num_cols) { return absl::StrCat("[", num_rows, ", ", num_cols, "]"); }

absl::Status CheckWeight(const char* name, const WeightView& weight, int64_t out_features, int64_t in_features) {
  if (!weight.present()) return absl::InvalidArgumentError(absl::StrCat(name, ": missing"));
  const auto& stored = weight.matrix;
  const int64_t num_out = weight.transposed ? stored.num_cols : stored.num_rows;
  const int64_t num_in = weight.transposed ? stored.num_rows : stored.num_cols;
  if (num_out == out_features && num_in == in_features) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": maps ", num_in, " to ", num_out, ", expected ", in_features, " to ", out_features));
}

absl::Status CheckBias(const char* name, ConstMatrixView bias, bool wanted, int64_t num_cols) {
  if ((bias.data != nullptr) != wanted) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, wanted ? ": missing in a layer with biases" : ": present in a layer without one"));
  }
  if (!wanted || (bias.num_rows == 1 && bias.num_cols == num_cols)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": shape ", Shape(bias.num_rows, bias.num_cols), ", expected ", Shape(1, num_cols)));
}

absl::Status CheckWeights(const LayerSpec& layer, const ExpertWeights& weights) {
  const int64_t dim = layer.hidden_dim, width = layer.expert_dim;
  SY_RETURN_IF_ERROR(CheckWeight("up", weights.up, width, dim));
  if (layer.expert.gated) SY_RETURN_IF_ERROR(CheckWeight("gate", weights.gate, width, dim));
  SY_RETURN_IF_ERROR(CheckWeight("down", weights.down, dim, width));
  SY_RETURN_IF_ERROR(CheckBias("up_bias", weights.up_bias, layer.expert.biased, width));
  SY_RETURN_IF_ERROR(CheckBias("gate_bias", weights.gate_bias, layer.expert.biased && layer.expert.gated, width));
  return CheckBias("down_bias", weights.down_bias, layer.expert.biased, dim);
}

MatrixView TileIn(HostBuffer* buffer, DType dtype, int64_t num_rows, int64_t num_cols) {
  MatrixView tile{nullptr, dtype, num_rows, num_cols};
  buffer->EnsureSize(tile.size_bytes());
  tile.data = buffer->data();
  return tile;
}

ClampedSwish FormulaOf(const ExpertSpec& spec) {
  ClampedSwish formula{.scale = spec.activation == Activation::kQuickGelu ? 1.702 : 1, .up_offset = spec.up_offset};
  if (spec.limit != 0) formula.limit = spec.limit;
  return formula;
}

template <typename T>
void MultiplyRows(const ClampedSwish& formula, ConstMatrixView gate, ConstMatrixView up, MatrixView out,
                  int num_threads) {
  using Sum = SumOf<T>;
  static const RowKernels<T> kernels = FastestRowKernels<T>();
  ParallelFor(num_threads, out.num_rows, [&](int64_t i) {
    kernels.clamped_swish(formula, reinterpret_cast<const Sum*>(gate.row(i)), reinterpret_cast<const Sum*>(up.row(i)),
                          reinterpret_cast<T*>(out.row(i)), out.num_cols);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostExpert>> CpuExpert::Load(const HostExpertContext& context, const LayerSpec& layer,
                                                            const ExpertWeights& weights,
                                                            std::shared_ptr<ExpertScratch> scratch) {
  SY_RETURN_IF_ERROR(CheckWeights(layer, weights));
  LinearContext* const linear = context.linear;
  const DType compute = context.compute_dtype;
  auto expert = std::unique_ptr<CpuExpert>(new CpuExpert(layer.expert, linear->num_threads(), std::move(scratch)));
  SY_ASSIGN_OR_RETURN(expert->up_, PackedLinear::Create(linear, compute, weights.up, weights.up_bias));
  if (layer.expert.gated) {
    SY_ASSIGN_OR_RETURN(expert->gate_, PackedLinear::Create(linear, compute, weights.gate, weights.gate_bias));
  }
  SY_ASSIGN_OR_RETURN(expert->down_, PackedLinear::Create(linear, compute, weights.down, weights.down_bias));
  return expert;
}

int64_t CpuExpert::weight_bytes() const {
  return up_->packed_bytes() + down_->packed_bytes() + (gate_ != nullptr ? gate_->packed_bytes() : 0);
}

absl::Status CpuExpert::RunPlain(ConstMatrixView x, MatrixView inner) const {
  return up_->Run(x, {.activation = spec_.activation}, inner);
}

// The library multiplies by up while it stores gate's result, so up is computed first. It is kept in SumDType, so it is
// not rounded to the compute type in between.
absl::Status CpuExpert::RunGated(ConstMatrixView x, MatrixView inner) const {
  const MatrixView up = TileIn(&scratch_->up, SumDType(inner.dtype), x.num_rows, inner.num_cols);
  SY_RETURN_IF_ERROR(up_->Run(x, {}, up));
  return gate_->Run(x, {.activation = spec_.activation, .multiplier = up}, inner);
}

absl::Status CpuExpert::RunClamped(ConstMatrixView x, MatrixView inner) const {
  const DType sum = SumDType(inner.dtype);
  const MatrixView up = TileIn(&scratch_->up, sum, x.num_rows, inner.num_cols);
  const MatrixView gate = TileIn(&scratch_->gate, sum, x.num_rows, inner.num_cols);
  SY_RETURN_IF_ERROR(up_->Run(x, {}, up));
  SY_RETURN_IF_ERROR(gate_->Run(x, {}, gate));
  switch (inner.dtype) {
    case DType::kF64:
      MultiplyRows<double>(FormulaOf(spec_), gate, up, inner, num_threads_);
      return absl::OkStatus();
    case DType::kF32:
      MultiplyRows<float>(FormulaOf(spec_), gate, up, inner, num_threads_);
      return absl::OkStatus();
    case DType::kBF16:
      MultiplyRows<BF16>(FormulaOf(spec_), gate, up, inner, num_threads_);
      return absl::OkStatus();
    case DType::kF16:
      break;
  }
  return absl::InternalError("no fp16 on CPUs");
}

absl::Status CpuExpert::Run(ConstMatrixView x, MatrixView y) {
  const MatrixView inner = TileIn(&scratch_->inner, up_->compute_dtype(), x.num_rows, up_->out_features());
  if (gate_ == nullptr) {
    SY_RETURN_IF_ERROR(RunPlain(x, inner));
  } else if (IsClamped(spec_)) {
    SY_RETURN_IF_ERROR(RunClamped(x, inner));
  } else {
    SY_RETURN_IF_ERROR(RunGated(x, inner));
  }
  return down_->Run(inner, {}, y);
}

absl::Status CpuExpert::Prepare() {
  const DType compute = up_->compute_dtype();
  const DType sum = SumDType(compute);
  if (gate_ == nullptr) {
    SY_RETURN_IF_ERROR(up_->Prepare({.activation = spec_.activation}, compute));
  } else if (IsClamped(spec_)) {
    SY_RETURN_IF_ERROR(up_->Prepare({}, sum));
    SY_RETURN_IF_ERROR(gate_->Prepare({}, sum));
  } else {
    std::byte present{};  // Prepare only looks at the multiplier's presence and type
    SY_RETURN_IF_ERROR(up_->Prepare({}, sum));
    SY_RETURN_IF_ERROR(gate_->Prepare({.activation = spec_.activation, .multiplier = {&present, sum, 0, 0}}, compute));
  }
  return down_->Prepare({}, sum);
}

}  // namespace switchyard
