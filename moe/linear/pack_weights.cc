#include "moe/linear/pack_weights.h"

#include <cstdint>

#include "base/tensor/convert.h"
#include "moe/linear/dnnl_status.h"
#include "moe/linear/linear_context_impl.h"
#include "moe/linear/parallel.h"

namespace switchyard {
namespace {

// The library may need aligned elements, and a tensor inside a file need not be aligned.
bool UsableInPlace(ConstMatrixView matrix, DType compute) {
  return matrix.dtype == compute && reinterpret_cast<uintptr_t>(matrix.data) % SizeOf(compute) == 0;
}

// `matrix` in the compute type: itself, or a copy in `staging`.
ConstMatrixView InComputeType(ConstMatrixView matrix, DType compute, int num_threads, HostBuffer* staging) {
  if (UsableInPlace(matrix, compute)) return matrix;
  MatrixView copy{nullptr, compute, matrix.num_rows, matrix.num_cols};
  staging->EnsureSize(copy.size_bytes());
  copy.data = staging->data();
  ParallelFor(num_threads, matrix.num_rows, [&](int64_t row_idx) {
    ConvertElements(matrix.dtype, matrix.row(row_idx), compute, copy.row(row_idx), matrix.num_cols);
  });
  return copy;
}

}  // namespace

absl::StatusOr<HostBuffer> PackWeights(LinearContext* context, const MatmulShape& shape, const WeightView& weight) {
  LinearContext::Impl& library = context->impl();
  const DType compute = shape.compute_dtype();
  const ConstMatrixView plain = InComputeType(weight.matrix, compute, context->num_threads(), &library.staging);
  // The library's weights are [K, N]; the usual [N, K] is its transpose, which the strides express.
  const auto tag = weight.transposed ? dnnl::memory::format_tag::ab : dnnl::memory::format_tag::ba;
  HostBuffer packed(shape.weights_desc().get_size());
  const auto reorder = [&] {
    const dnnl::memory::desc plain_desc({shape.in_features(), shape.out_features()}, DnnlType(compute), tag);
    dnnl::memory from(plain_desc, library.engine, const_cast<std::byte*>(plain.data));
    dnnl::memory to(shape.weights_desc(), library.engine, packed.data());
    dnnl::reorder(from, to).execute(library.stream, from, to);
    library.stream.wait();
  };
  SY_RETURN_IF_ERROR(SY_DNNL_CALL(reorder()));
  return packed;
}

}  // namespace switchyard
