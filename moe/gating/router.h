// A router computes logits in fp32 from rows [T, D], in two steps, so that the first, the large one, can be shared out
// by rows, by slices of columns or by both.
//
//   linear   1. y = x · weightᵀ                     2. logits = y + bias
//   cosine   1. y = x · projectorᵀ                  2. p = y + projector_bias; logits = p/|p| · weight_e/|weight_e| ·
//                                                      logit_scale (+ bias), norms at least 1e-12 (Tutel's cosine_top)
//
// The gate of a gated shared expert is one row, which is appended to the linear router's weight and gives the last
// column of the logits. Where their types differ, both are widened to fp32.
//
// Thread-safety: constant after Create; any number of threads may call RunSlices and Finish, each with a Scratch of its
// own. The context must outlive the router.
#pragma once

#include <memory>
#include <vector>

#include "base/status.h"
#include "base/tensor/buffer.h"
#include "base/tensor/tensor.h"
#include "moe/gating/select_experts.h"
#include "moe/linear/linear_context.h"
#include "moe/linear/sliced_linear.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

class Router {
 public:
  // Working memory of one thread while it runs.
  struct Scratch {
    explicit Scratch(LinearContext* context) : linear(context) {}
    SlicedLinear::Scratch linear;
    HostBuffer y;       // of the first step, for callers that run both steps
    HostBuffer logits;  // of a cosine router
  };

  // Packs the weights, which are not used afterwards: for fp32 rows always, for bf16 rows too when the weights are bf16
  // (then products of bf16 rows are exact and half the bytes move). INVALID_ARGUMENT names what does not fit `layer`.
  static absl::StatusOr<std::unique_ptr<Router>> Create(LinearContext* context, const LayerSpec& layer,
                                                        const RouterWeights& weights);

  bool Accepts(DType dtype) const { return LinearFor(dtype) != nullptr; }

  // The first step's columns of y, slices of 64 columns, and bytes of packed weights.
  int64_t first_width() const { return fp32_->out_features(); }
  int num_slices() const { return fp32_->num_slices(); }
  int64_t packed_bytes(DType dtype) const { return LinearFor(dtype)->packed_bytes(); }
  // Multiplications of one row in both steps.
  int64_t products_per_row() const;

  // Runs the first step: computes columns [64 · first_slice, …) of y [T, first_width()]. `rows` are of an accepted
  // type.
  absl::Status RunSlices(ConstMatrixView rows, int first_slice, int num_slices, float* y, Scratch* scratch) const;

  // Runs the second step on `num_rows` rows of y, which it changes. The logits are in y or in scratch->logits.
  absl::StatusOr<LogitRows> Finish(float* y, int64_t num_rows, Scratch* scratch) const;

  // The shared expert's logit is at [num_experts] of each row of logits.
  bool has_shared_gate() const { return has_shared_gate_; }

 private:
  Router(LinearContext* context, int num_experts) : context_(context), num_experts_(num_experts) {}

  const SlicedLinear* LinearFor(DType dtype) const;
  absl::Status PackFirst(const HostMatrix& weight);
  absl::Status PackLinear(const RouterWeights& weights);
  absl::Status PackCosine(const RouterWeights& weights);

  LinearContext* const context_;
  const int num_experts_;
  bool has_shared_gate_ = false;
  std::unique_ptr<SlicedLinear> fp32_;
  std::unique_ptr<SlicedLinear> bf16_;    // null when fp32 alone is accepted
  std::unique_ptr<SlicedLinear> cosine_;  // weight_e/|weight_e|, or null
  std::vector<float> projector_bias_, bias_;
  float logit_scale_ = 1;
};

}  // namespace switchyard
