// Computes an expert layer in plain float64 code: the definition that every engine is tested against.
#pragma once

#include <span>
#include <vector>

#include "base/tensor/tensor.h"
#include "moe/gating/routing.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// Output rows [T, D], row-major, for `rows` [T, D] of any type: the sum over a row's choices of weight · expert(row),
// or of expert(weight · row) in layers that weigh the input. `experts[e]` are the weights of expert e, shared ones
// last, of any types; a negative expert index is a dropped choice. Supports every combination of ExpertSpec's fields.
// Slow: use it at test sizes. Thread-safe.
std::vector<double> ReferenceExperts(const LayerSpec& layer, std::span<const ExpertWeights> experts,
                                     ConstMatrixView rows, const Routing& routing);

// A matrix or weight of any type as row-major doubles; a transposed weight is returned as [out, in].
std::vector<double> ToDoubles(ConstMatrixView matrix);
std::vector<double> ToDoubles(const WeightView& weight);

}  // namespace switchyard
