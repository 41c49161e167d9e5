// Holds a rank's experts and computes with them: the part of a step that happens on one device.
//
// A step on one rank, in order; `plan` is the same throughout:
//   GatherSendRows   home rows [num_home_rows, D]          → send buffer [num_send_rows, D]
//   (exchange)       send buffer                           → received rows [num_recv_rows, D]
//   RunExperts       received rows [num_recv_rows, D]      → partial sums [num_recv_rows, D]
//   (exchange back)  partial sums                          → returned sums [num_send_rows, D]
//   Combine          returned sums [num_send_rows, D]      → output rows [num_home_rows, D]
// Rows, partial sums and outputs are of the engine's compute type; sums over experts and ranks are accumulated in fp32
// (fp64 when that is the compute type). Layers that weigh the input (ExpertSpec) round weight · row to the compute
// type. A home row no rank computes (all its choices dropped) comes out zero. NaN in a row stays in it and stays NaN.
//
// Life of an engine: AddLayer for every layer, Reserve once, LoadExpert for every slot, then steps.
//
// Host and device. A host engine's calls have done their work when they return. A device engine only enqueues it, in
// order, on stream(); several steps may be on their way, each in a *lane*, and a step is wrapped so that its rows find
// their way between host memory and the device:
//   BeginStep(lane, home rows in host memory)  → home rows that the phases above may read
//   StepOutput(lane, output in host memory)    → where RunExperts or Combine may write output rows
//   …the phases…
//   EndStep(lane, that, output in host memory) the output rows' way back
//   WaitStep(lane)                             blocks until they are there; the first error of anything enqueued since
// Plans are copied before a call returns; host rows must stay as they are until WaitStep. A step that failed on the way
// ends with EndStep of no rows, and is waited for all the same.
//
// Thread-safety: one thread at a time, except LoadExpert, which load_threads() threads may call at once for different
// slots, and WaitStep, which one other thread may call meanwhile.
#pragma once

#include <cstdint>
#include <memory>

#include "base/ids.h"
#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/exchange/communicator.h"
#include "moe/plan/step_plan.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

class ExpertEngine {
 public:
  virtual ~ExpertEngine() = default;

  virtual DType compute_dtype() const = 0;

  // Declares a layer with room for `num_slots` experts, shared ones included. Layers come in LayerId order from 0.
  // INVALID_ARGUMENT or UNIMPLEMENTED names the layer and the field of a formula that the engine has no code for.
  virtual absl::Status AddLayer(const LayerSpec& spec, int num_slots) = 0;

  // Makes room for the weights of all layers added and for steps of up to `max_rows` (the argument) rows in the whole
  // group. RESOURCE_EXHAUSTED with the bytes needed and free when the device cannot hold them: better now than in a
  // step.
  virtual absl::Status Reserve(int64_t /*max_rows*/) { return absl::OkStatus(); }

  virtual int load_threads() const { return 1; }

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

  // Where the exchange is ordered, so that it can overlap with compute; nullptr for host engines.
  virtual DeviceStream exchange_stream() const { return nullptr; }

  // Whatever is enqueued on `later` from now on starts after everything on `earlier`.
  virtual absl::Status Order(DeviceStream /*earlier*/, DeviceStream /*later*/) { return absl::OkStatus(); }

  // Steps that can be on their way at once.
  virtual int num_lanes() const { return 1; }

  virtual absl::StatusOr<ConstMatrixView> BeginStep(int /*lane*/, ConstMatrixView home_rows) { return home_rows; }
  virtual absl::StatusOr<MatrixView> StepOutput(int /*lane*/, MatrixView output) { return output; }
  virtual absl::Status EndStep(int /*lane*/, ConstMatrixView /*step_output*/, MatrixView /*output*/) {
    return absl::OkStatus();
  }
  virtual absl::Status WaitStep(int /*lane*/) { return absl::OkStatus(); }

  // Not OK once the device is lost to this process: only a new process can use it again.
  virtual absl::Status CheckDevice() { return absl::OkStatus(); }

  virtual absl::Status GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) = 0;
  virtual absl::Status RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                                  MatrixView partial_sums) = 0;
  virtual absl::Status Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) = 0;
};

}  // namespace switchyard
