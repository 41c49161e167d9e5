// Holds a rank's experts and computes with them: the part of a step that happens on one device.
//
// A step on one rank, in order; `plan` is the same throughout:
//   GatherSendRows   home rows [num_home_rows, D]          → send buffer [num_send_rows, D]
//   (exchange)       send buffer                           → received rows [num_recv_rows, D]
//   RunExperts       received rows [num_recv_rows, D]      → partial sums [num_recv_rows, D]
//   (exchange back)  partial sums                          → returned sums [num_send_rows, D]
//   Combine          returned sums [num_send_rows, D]      → output rows [num_home_rows, D]
// Rows, partial sums and outputs are of the engine's compute type; sums over experts and ranks are accumulated in fp32
// (fp64 when that is the compute type). A home row no rank computes (all its choices dropped) comes out zero.
//
// Thread-safety: one thread at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "moe/base/ids.h"
#include "moe/base/status.h"
#include "moe/exchange/communicator.h"
#include "moe/plan/step_plan.h"
#include "moe/tensor/tensor.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

class ExpertEngine {
 public:
  virtual ~ExpertEngine() = default;

  virtual DType compute_dtype() const = 0;

  // Declares a layer with room for `num_slots` experts. Layers come in LayerId order from 0.
  virtual absl::Status AddLayer(const LayerSpec& spec, int num_slots) = 0;

  // Converts and packs one expert into the engine's own layout; the views are not used afterwards.
  virtual absl::Status LoadExpert(LayerId layer, int slot, const ExpertWeights& weights) = 0;

  // Bytes the engine holds for weights, packing included.
  virtual int64_t weight_bytes() const = 0;

  // Memory the exchange buffers of a step live in (host memory here, device memory on a GPU), reused step after step:
  // valid until the next call for the same purpose. `num_bytes` may be zero.
  enum class Scratch : uint8_t { kSend = 0, kReceive = 1, kPartial = 2, kReturned = 3 };
  virtual absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) = 0;

  // Where device work is ordered; nullptr for host engines.
  virtual DeviceStream stream() const = 0;

  virtual absl::Status GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) = 0;
  virtual absl::Status RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                                  MatrixView partial_sums) = 0;
  virtual absl::Status Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) = 0;
};

}  // namespace switchyard
