// Packs a weight matrix into the layout of a shape's primitives.
#pragma once

#include "base/tensor/buffer.h"
#include "moe/linear/linear_context.h"
#include "moe/linear/matmul_shape.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// `weight`, converted to the shape's compute type, in the layout shape.weights_desc(), which gives its size.
absl::StatusOr<HostBuffer> PackWeights(LinearContext* context, const MatmulShape& shape, const WeightView& weight);

}  // namespace switchyard
