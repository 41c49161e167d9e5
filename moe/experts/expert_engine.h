// Holds a rank's experts and runs the part of a step that happens on one device.
//
// A step on one rank, in order; `plan` is the same throughout:
//   GatherSendRows   home rows [num_home_rows, D]          → send buffer [num_send_rows, D]
//   (exchange)       send buffer                           → received rows [num_recv_rows, D]
//   RunExperts       received rows [num_recv_rows, D]      → partial sums [num_recv_rows, D]
//   (exchange back)  partial sums                          → returned sums [num_send_rows, D]
//   Combine          returned sums [num_send_rows, D]      → output rows [num_home_rows, D]
// Rows, partial sums and outputs are of the engine's compute type; sums over experts and ranks are accumulated in fp32
// (fp64 when that is the compute type). Layers that weigh the input (ExpertSpec) round weight · row to the compute
// type. The output of a home row that no rank computes (all its choices dropped) is zero. NaN in a row stays NaN and
// does not spread to other rows.
//
// Life of an engine: AddLayer for every layer, Reserve once, LoadExpert for every slot, then steps.
//
// Host and device. A host engine's calls have done their work when they return. A device engine only enqueues the work,
// in order, on stream(). Several steps may be in flight, each in a *lane*. These calls surround the phases of a step
// and move its rows between host memory and the device:
//   BeginStep(lane, home rows in host memory)  → home rows that the phases above may read
//   StepOutput(lane, output in host memory)    → where RunExperts or Combine may write output rows
//   …the phases…
//   EndStep(lane, that, output in host memory) copies the output rows back to host memory
//   WaitStep(lane)                             blocks until they are there; returns the first error of the step's work
// Plans are copied before a call returns; host rows must stay unchanged until WaitStep. After a failure to enqueue, the
// caller still ends the step with EndStep of no rows and calls WaitStep.
//
// Thread-safety: one thread at a time, except LoadExpert, which load_threads() threads may call at once for different
// slots, and WaitStep, which a second thread may call at the same time.
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
  // INVALID_ARGUMENT or UNIMPLEMENTED, naming the layer and the field, for a formula that the engine has no code for.
  virtual absl::Status AddLayer(const LayerSpec& spec, int num_slots) = 0;

  // Makes room for the weights of all layers added and for steps of up to `max_rows` (the argument) rows in the whole
  // group. RESOURCE_EXHAUSTED, with the bytes needed and free, when the device cannot hold them, so that steps do not
  // run out of memory later.
  virtual absl::Status Reserve(int64_t /*max_rows*/) { return absl::OkStatus(); }

  virtual int load_threads() const { return 1; }

  // Converts and packs one expert into the engine's own layout; the views are not used after the call.
  virtual absl::Status LoadExpert(LayerId layer, int slot, const ExpertWeights& weights) = 0;

  // Bytes the engine holds for weights, packing included.
  virtual int64_t weight_bytes() const = 0;

  // Memory for a step's exchange buffers: host memory in a host engine, device memory in a GPU's. It is reused from
  // step to step and valid until the next call for the same purpose. `num_bytes` may be zero.
  enum class Scratch : uint8_t { kSend = 0, kReceive = 1, kPartial = 2, kReturned = 3 };
  virtual absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) = 0;

  // The stream that compute work is enqueued on; nullptr for host engines.
  virtual DeviceStream stream() const = 0;

  // The stream for the exchange, which can thus overlap with compute; nullptr for host engines.
  virtual DeviceStream exchange_stream() const { return nullptr; }

  // Work enqueued on `later` after this call starts only after all work enqueued on `earlier` before it.
  virtual absl::Status Order(DeviceStream /*earlier*/, DeviceStream /*later*/) { return absl::OkStatus(); }

  // Number of steps that can be in flight at once.
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
