#include "moe/linear/packed_linear.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "moe/linear/blas_linear.h"
#include "moe/linear/dnnl_linear.h"
#include "moe/linear/row_chunks.h"

namespace switchyard {
namespace {

std::string Describe(ConstMatrixView matrix) {
  return absl::StrCat(std::string(DTypeName(matrix.dtype)), " [", matrix.num_rows, ", ", matrix.num_cols, "]");
}

absl::Status CheckMatrix(const char* name, ConstMatrixView matrix, DType dtype, int64_t num_rows, int64_t num_cols) {
  if (matrix.num_rows == num_rows && matrix.num_cols == num_cols && matrix.dtype == dtype) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("linear: ", name, " is ", Describe(matrix), ", expected ",
                                                 std::string(DTypeName(dtype)), " [", num_rows, ", ", num_cols, "]"));
}

// The type that a multiplier or y of `given` type must have: the libraries take no mixture but fp32 beside bf16.
DType WantedBeside(DType compute, DType given) {
  return compute == DType::kBF16 && given == DType::kF32 ? DType::kF32 : compute;
}

absl::Status CheckWeights(const WeightView& weight, ConstMatrixView bias) {
  if (!weight.present() || weight.matrix.num_rows < 1 || weight.matrix.num_cols < 1) {
    return absl::InvalidArgumentError(absl::StrCat("linear: weight is empty: ", Describe(weight.matrix)));
  }
  const int64_t out_features = weight.transposed ? weight.matrix.num_cols : weight.matrix.num_rows;
  if (bias.data == nullptr || (bias.num_rows == 1 && bias.num_cols == out_features)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("linear: bias is ", Describe(bias), ", expected [1, ", out_features, "]"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackedLinear>> PackedLinear::Create(LinearContext* context, DType compute,
                                                                   const WeightView& weight, ConstMatrixView bias) {
  SY_RETURN_IF_ERROR(CheckWeights(weight, bias));
  switch (compute) {
    case DType::kF64:
      return BlasLinear::Create(context, weight, bias);
    case DType::kF32:
    case DType::kBF16:
      return DnnlLinear::Create(context, compute, weight, bias);
    case DType::kF16:
      break;
  }
  return absl::UnimplementedError("linear: compute type fp16 is not available on CPUs; use fp64, fp32 or bf16");
}

absl::Status PackedLinear::Run(ConstMatrixView x, const LinearEpilogue& epilogue, MatrixView y) const {
  const ConstMatrixView& multiplier = epilogue.multiplier;
  const bool multiplies = multiplier.data != nullptr;
  SY_RETURN_IF_ERROR(CheckMatrix("x", x, compute_, x.num_rows, in_features_));
  SY_RETURN_IF_ERROR(CheckMatrix("y", y, WantedBeside(compute_, y.dtype), x.num_rows, out_features_));
  if (multiplies) {
    const DType wanted = WantedBeside(compute_, multiplier.dtype);
    SY_RETURN_IF_ERROR(CheckMatrix("multiplier", multiplier, wanted, x.num_rows, out_features_));
  }
  for (int64_t begin = 0; begin < x.num_rows;) {
    const int64_t count = NextChunkRows(x.num_rows - begin);
    LinearEpilogue chunk = epilogue;
    if (multiplies) chunk.multiplier = multiplier.Rows(begin, count);
    SY_RETURN_IF_ERROR(RunChunk(x.Rows(begin, count), chunk, y.Rows(begin, count)));
    begin += count;
  }
  return absl::OkStatus();
}

}  // namespace switchyard
