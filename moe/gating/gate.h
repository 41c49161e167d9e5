// The gate of one layer: router logits with fp32 accumulation, then scoring and selection, then the shared experts'
// columns. The caller does little work alone; more work is shared out over the context's threads.
#pragma once

#include <memory>

#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/gating/routing.h"
#include "moe/gating/score_stats.h"
#include "moe/linear/linear_context.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// Thread-compatible: one thread at a time calls Route.
class Gate {
 public:
  // The gate layer.gate_at(gate_idx) with `router`'s weights, which are packed once per row type the gate will see:
  // fp32 always, bf16 too when the checkpoint's router is bf16. `router` is not used afterwards. Gates that share a
  // `context` share its compiled code and threads, so only one thread at a time may call any of them; with null the
  // gate makes a context of its own, on all cores. INVALID_ARGUMENT names the layer and what does not fit together.
  static absl::StatusOr<std::unique_ptr<Gate>> Create(const LayerSpec& layer, int gate_idx, const RouterWeights& router,
                                                      std::shared_ptr<LinearContext> context = nullptr);
  virtual ~Gate() = default;

  // Whether rows of this type may be given to Route as they are.
  virtual bool Accepts(DType dtype) const = 0;

  // Routes rows [T, D] of an accepted type into rows [first_row, first_row + T) of `routing`, which is already sized.
  // Its columns
  //   [0, k)               are the gate's choices, best first; k is `top_k` in 1..E, or the gate's own where that is 0;
  //   [k, k + num_shared)  are the shared experts E, E + 1, …, with weight 1 or the shared gate's sigmoid;
  //   the rest             have expert -1 and weight 0.
  // Capacity is not applied, because it is counted over whole requests (capacity.h). `stats` may be null. Otherwise the
  // caller has Reset it to at least first_row + T rows and E experts; Route writes best_score of these rows and adds to
  // score_sum, in an order that depends only on the number of rows and threads.
  virtual absl::Status Route(ConstMatrixView rows, int64_t first_row, int top_k, Routing* routing,
                             ScoreStats* stats) = 0;
};

}  // namespace switchyard
