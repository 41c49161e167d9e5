#include "moe/experts/cpu/cpu_expert.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

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
        absl::StrCat(name, wanted ? ": missing in a biased layer" : ": present in a layer without biases"));
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
  return CheckBias("down_bias", weights.down_bias, layer.expert.biased, dim);
}

MatrixView TileIn(HostBuffer* buffer, DType dtype, int64_t num_rows, int64_t num_cols) {
  MatrixView tile{nullptr, dtype, num_rows, num_cols};
  buffer->EnsureSize(tile.size_bytes());
  tile.data = buffer->data();
  return tile;
}

}  // namespace

DType SumDType(DType compute) { return compute == DType::kF64 ? DType::kF64 : DType::kF32; }

absl::StatusOr<std::unique_ptr<CpuExpert>> CpuExpert::Load(LinearContext* context, DType compute,
                                                           const LayerSpec& layer, const ExpertWeights& weights) {
  SY_RETURN_IF_ERROR(CheckWeights(layer, weights));
  auto expert = std::unique_ptr<CpuExpert>(new CpuExpert(layer.expert.activation));
  SY_ASSIGN_OR_RETURN(expert->up_, PackedLinear::Create(context, compute, weights.up, weights.up_bias));
  if (layer.expert.gated) {
    SY_ASSIGN_OR_RETURN(expert->gate_, PackedLinear::Create(context, compute, weights.gate, {}));
  }
  SY_ASSIGN_OR_RETURN(expert->down_, PackedLinear::Create(context, compute, weights.down, weights.down_bias));
  return expert;
}

int64_t CpuExpert::weight_bytes() const {
  return up_->packed_bytes() + down_->packed_bytes() + (gate_ != nullptr ? gate_->packed_bytes() : 0);
}

absl::Status CpuExpert::Run(ConstMatrixView x, ExpertScratch* scratch, MatrixView y) const {
  const DType compute = up_->compute_dtype();
  const MatrixView inner = TileIn(&scratch->inner, compute, x.num_rows, up_->out_features());
  if (gate_ != nullptr) {
    // The library multiplies by up while it stores gate, so up comes first; in fp32 it is not rounded on the way.
    const MatrixView up = TileIn(&scratch->up, SumDType(compute), x.num_rows, up_->out_features());
    SY_RETURN_IF_ERROR(up_->Run(x, {}, up));
    SY_RETURN_IF_ERROR(gate_->Run(x, {.activation = activation_, .multiplier = up}, inner));
  } else {
    SY_RETURN_IF_ERROR(up_->Run(x, {.activation = activation_}, inner));
  }
  return down_->Run(inner, {}, y);
}

absl::Status CpuExpert::Prepare() const {
  const DType compute = up_->compute_dtype();
  const DType sum = SumDType(compute);
  if (gate_ != nullptr) {
    std::byte present{};  // only whether there is a multiplier counts, and its type
    SY_RETURN_IF_ERROR(up_->Prepare({}, sum));
    SY_RETURN_IF_ERROR(gate_->Prepare({.activation = activation_, .multiplier = {&present, sum, 0, 0}}, compute));
  } else {
    SY_RETURN_IF_ERROR(up_->Prepare({.activation = activation_}, compute));
  }
  return down_->Prepare({}, sum);
}

}  // namespace switchyard
