#include "moe/linear/dnnl_linear.h"

#include "base/tensor/convert.h"
#include "moe/linear/dnnl_status.h"
#include "moe/linear/pack_weights.h"
#include "moe/linear/parallel.h"
#include "moe/linear/row_chunks.h"

namespace switchyard {
namespace {

void Point(dnnl::memory* memory, const std::byte* data) {
  // oneDNN's argument type is not const even for data that it only reads.
  memory->set_data_handle(const_cast<std::byte*>(data));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackedLinear>> DnnlLinear::Create(LinearContext* context, DType compute,
                                                                 const WeightView& weight, ConstMatrixView bias) {
  const int64_t in_features = weight.transposed ? weight.matrix.num_rows : weight.matrix.num_cols;
  const int64_t out_features = weight.transposed ? weight.matrix.num_cols : weight.matrix.num_rows;
  omp_set_num_threads(context->num_threads());
  SY_ASSIGN_OR_RETURN(MatmulShape * shape,
                      context->impl().ShapeFor(compute, in_features, out_features, context->num_threads()));
  auto linear = std::unique_ptr<DnnlLinear>(new DnnlLinear(context, shape, compute, in_features, out_features));
  SY_ASSIGN_OR_RETURN(linear->packed_, PackWeights(context, *shape, weight));
  if (bias.data != nullptr) {
    linear->bias_ = HostBuffer(out_features * sizeof(float));
    ConvertElements(bias.dtype, bias.data, DType::kF32, linear->bias_.data(), out_features);
  }
  return linear;
}

MatmulVariant DnnlLinear::VariantOf(int64_t num_rows, const LinearEpilogue& epilogue, DType y_dtype) const {
  MatmulVariant variant{.num_rows = num_rows, .y_dtype = y_dtype, .biased = bias_.size() != 0};
  variant.activation = epilogue.activation;
  if (epilogue.multiplier.data != nullptr) variant.multiplier = epilogue.multiplier.dtype;
  return variant;
}

absl::Status DnnlLinear::Prepare(const LinearEpilogue& epilogue, DType y_dtype) const {
  omp_set_num_threads(context_->num_threads());
  for (int64_t num_rows = 1; num_rows <= kMaxExactRows; ++num_rows) {
    SY_RETURN_IF_ERROR(shape_->KernelFor(VariantOf(num_rows, epilogue, y_dtype)).status());
  }
  return shape_->KernelFor(VariantOf(kFullChunkRows, epilogue, y_dtype)).status();
}

absl::Status DnnlLinear::RunChunk(ConstMatrixView x, const LinearEpilogue& epilogue, MatrixView y) const {
  LinearContext::Impl& library = context_->impl();
  // Sets the calling thread's number of OpenMP threads, which oneDNN compiles for and runs with.
  omp_set_num_threads(context_->num_threads());
  SY_ASSIGN_OR_RETURN(MatmulKernel * kernel, shape_->KernelFor(VariantOf(x.num_rows, epilogue, y.dtype)));
  library.scratchpad.EnsureSize(kernel->scratchpad_bytes);
  const auto execute = [&] {
    Point(&kernel->x, x.data);
    Point(&kernel->weights, packed_.data());
    Point(&kernel->y, y.data);
    Point(&kernel->scratchpad, library.scratchpad.data());
    if (bias_.size() != 0) Point(&kernel->bias, bias_.data());
    if (epilogue.multiplier.data != nullptr) Point(&kernel->multiplier, epilogue.multiplier.data);
    kernel->primitive.execute(library.stream, kernel->arguments);
    library.stream.wait();
  };
  return SY_DNNL_CALL(execute());
}

}  // namespace switchyard
