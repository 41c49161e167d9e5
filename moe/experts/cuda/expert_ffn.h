// The feed-forward part of RunExperts: multiplies grouped rows by every expert's up (and gate) projection, applies the
// activation, and multiplies by the down projection. There are two implementations: Switchyard's grouped GEMM (Hopper,
// bf16 and fp16) and cuBLAS (all types, all GPUs).
#pragma once

#include <cstdint>
#include <memory>

#include "moe/experts/cuda/cuda_device.h"
#include "moe/experts/cuda/kernels/layouts.h"
#include "moe/experts/cuda/weight_loader.h"
#include "moe/gpu/memory.h"
#include "moe/plan/step_plan.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// Sizes of a layer's matrices, in elements, padding included.
struct FfnShape {
  explicit FfnShape(const LayerSpec& spec)
      : hidden_dim(spec.hidden_dim),
        expert_dim(spec.expert_dim),
        row_pitch(RowPitch(spec.hidden_dim)),
        hidden_pitch(RowPitch(spec.expert_dim)),
        up_rows(hidden_pitch * (spec.expert.gated ? 2 : 1)) {}

  int64_t up_elements() const { return up_rows * row_pitch; }
  int64_t down_elements() const { return row_pitch * hidden_pitch; }

  int64_t hidden_dim;
  int64_t expert_dim;
  int64_t row_pitch;     // pitch of grouped rows and of outputs
  int64_t hidden_pitch;  // pitch of activated rows
  int64_t up_rows;       // rows of the up matrix, gate included
};

// A layer on the device.
struct CudaLayer {
  CudaLayer(const LayerSpec& spec_in, int num_slots_in) : spec(spec_in), shape(spec_in), num_slots(num_slots_in) {}

  const LayerSpec spec;
  const FfnShape shape;
  const int num_slots;
  DeviceBuffer up, down;            // all slots' weights, in the implementation's layout
  DeviceBuffer up_bias, down_bias;  // [num_slots, up_rows] and [num_slots, row_pitch]; empty unless biased
  std::vector<uint8_t> is_loaded;   // by slot; each written by the thread that loads it
};

// The parts of a step that do not depend on the implementation.
struct FfnStep {
  const RankPlanView* plan = nullptr;
  // The rows are either grouped, or in place: when each expert's rows are consecutive and the implementation can read
  // them where they are. rows_in_place.data is null when they are grouped.
  void* grouped = nullptr;  // [num_pairs, row_pitch]
  ConstMatrixView rows_in_place;
  void* hidden = nullptr;   // [num_pairs, hidden_pitch]
  void* outputs = nullptr;  // [num_parts, num_pairs, row_pitch]
};

// Thread-safety: one thread at a time, except TargetOf, which any thread may call.
class ExpertFfn {
 public:
  virtual ~ExpertFfn() = default;

  // Whether FfnStep::rows_in_place may be used.
  virtual bool reads_runs_in_place() const { return false; }

  // Bytes of Workspace::kProducts per pair.
  virtual int64_t ProductBytesPerPair(const FfnShape& shape) const = 0;
  // Bytes of tables for a step of `num_pairs` pairs.
  virtual int64_t TableBytes(int64_t num_pairs, int num_slots) const = 0;

  // Where the loader writes a part of the weights of the expert in `slot`.
  enum class Part : uint8_t { kUp, kGate, kDown };
  virtual PackTarget TargetOf(const CudaLayer& layer, int slot, Part part) const = 0;

  // Writes the step's tables with CudaDevice::NewTable; the caller uploads them before Run. Returns the number of parts
  // that Run computes of each output, at most `max_parts`; the caller adds them up.
  virtual absl::StatusOr<int> MakeTables(const CudaLayer& layer, const RankPlanView& plan, int64_t max_parts) = 0;

  // Enqueues the products.
  virtual absl::Status Run(const CudaLayer& layer, const FfnStep& step) = 0;
};

std::unique_ptr<ExpertFfn> CreateCublasFfn(CudaDevice* device, DType dtype, bool allow_tf32);
// FAILED_PRECONDITION when the device lacks Hopper's matrix instructions.
absl::StatusOr<std::unique_ptr<ExpertFfn>> CreateHopperFfn(CudaDevice* device, DType dtype);

}  // namespace switchyard
