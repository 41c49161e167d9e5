#include "moe/linear/linear_context.h"

#include <utility>

#include "base/process/container_limits.h"
#include "moe/linear/dnnl_status.h"
#include "moe/linear/linear_context_impl.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<LinearContext>> LinearContext::Create(int num_threads) {
  if (num_threads < 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_threads: expected 0 (all cores) or more, got ", num_threads));
  }
  auto impl = std::make_unique<Impl>();
  SY_RETURN_IF_ERROR(SY_DNNL_CALL(impl->engine = dnnl::engine(dnnl::engine::kind::cpu, 0)));
  SY_RETURN_IF_ERROR(SY_DNNL_CALL(impl->stream = dnnl::stream(impl->engine)));
  if (num_threads == 0) num_threads = OwnCpuShare().num_threads;
  return std::unique_ptr<LinearContext>(new LinearContext(num_threads, std::move(impl)));
}

LinearContext::LinearContext(int num_threads, std::unique_ptr<Impl> impl)
    : num_threads_(num_threads), pool_(num_threads), impl_(std::move(impl)) {}

LinearContext::~LinearContext() = default;

absl::StatusOr<MatmulShape*> LinearContext::Impl::ShapeFor(DType compute, int64_t in_features, int64_t out_features,
                                                           int num_threads) {
  std::unique_ptr<MatmulShape>& shape = shapes_[{compute, in_features, out_features, num_threads}];
  if (shape == nullptr) {
    SY_ASSIGN_OR_RETURN(shape, MatmulShape::Create(engine, compute, in_features, out_features));
  }
  return shape.get();
}

}  // namespace switchyard
