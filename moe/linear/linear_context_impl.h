// The internals of a LinearContext.
#pragma once

#include <memory>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "base/tensor/buffer.h"
#include "dnnl.hpp"
#include "moe/linear/linear_context.h"
#include "moe/linear/matmul_shape.h"

namespace switchyard {

struct LinearContext::Impl {
  dnnl::engine engine;
  dnnl::stream stream;
  HostBuffer scratchpad;  // for the primitive that is running
  HostBuffer staging;     // one weight matrix on its way into its packed layout

  // The primitives of a shape for use by `num_threads` threads, made at first use; valid as long as the context. The
  // caller must have set OpenMP to that number of threads before this call, and whenever it compiles or runs one of the
  // primitives.
  absl::StatusOr<MatmulShape*> ShapeFor(DType compute, int64_t in_features, int64_t out_features, int num_threads);

 private:
  absl::flat_hash_map<std::tuple<DType, int64_t, int64_t, int>, std::unique_ptr<MatmulShape>> shapes_;
};

}  // namespace switchyard
