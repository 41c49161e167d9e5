// The gate of one layer: router logits with fp32 accumulation, then scoring and top-k. Little work is done by the
// caller alone; much is shared out over the context's threads.
#pragma once

#include <memory>

#include "moe/gating/routing.h"
#include "moe/linear/linear_context.h"
#include "moe/tensor/tensor.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// Scoring and selection only: logits [T, E] (row-major fp32) to `routing`, rows [first_row, first_row + T) of which are
// written; `routing` must already be sized. Pure.
// Ties go to the lower expert index. A row with a NaN logit gets k distinct experts and NaN weights, so that its output
// is NaN and every other row is untouched.
void SelectExperts(const GateSpec& spec, const float* logits, int64_t num_rows, int num_experts, int64_t first_row,
                   Routing* routing);

// Thread-compatible: one thread at a time calls Route.
class Gate {
 public:
  // Packs the router once per row type it will see: fp32 always, bf16 too when the checkpoint's router is bf16 (then
  // products of bf16 rows are exact and half the bytes move). Gates that share a `context` share its compiled code and
  // threads, and then one thread at a time calls any of them; null makes one of its own on all cores.
  static absl::StatusOr<std::unique_ptr<Gate>> Create(const LayerSpec& layer, const RouterWeights& router,
                                                      std::shared_ptr<LinearContext> context = nullptr);
  virtual ~Gate() = default;

  // Whether rows of this type may be given to Route as they are.
  virtual bool Accepts(DType dtype) const = 0;

  // Routes rows [T, D] of an accepted type into rows [first_row, first_row + T) of `routing`, already sized.
  virtual absl::Status Route(ConstMatrixView rows, int64_t first_row, Routing* routing) = 0;
};

}  // namespace switchyard
