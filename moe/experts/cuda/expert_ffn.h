// The feed-forward part of RunExperts: grouped rows through every expert's up (and gate), activation and down
// projections. Two implementations: Switchyard's grouped GEMM (Hopper, bf16 and fp16) and cuBLAS (all types, all GPUs).
#pragma once

#include <cstdint>
#include <memory>

#include "moe/experts/cuda/cuda_device.h"
#include "moe/experts/cuda/layouts.h"
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
  int64_t row_pitch;     // of grouped rows and of outputs
  int64_t hidden_pitch;  // of activated rows
  int64_t up_rows;       // of the up matrix, gate included
};

// A layer on the device.
struct CudaLayer {
  CudaLayer(const LayerSpec& spec_in, int num_slots_in) : spec(spec_in), shape(spec_in), num_slots(num_slots_in) {}

  const LayerSpec spec;
  const FfnShape shape;
  const int num_slots;
  DeviceBuffer up, down;            // of all slots, in the implementation's layout
  DeviceBuffer up_bias, down_bias;  // [num_slots, up_rows] and [num_slots, row_pitch]; empty unless biased
  std::vector<uint8_t> is_loaded;   // by slot; each written by the thread that loads it
};

// Everything about one step that does not depend on the implementation.
struct FfnStep {
  const RankPlanView* plan = nullptr;
  // Either rows are grouped or, when every expert's follow one another and the implementation can, they stay in place.
  void* grouped = nullptr;  // [num_pairs, row_pitch]
  ConstMatrixView rows_in_place;
  void* hidden = nullptr;   // [num_pairs, hidden_pitch]
  void* outputs = nullptr;  // [num_parts, num_pairs, row_pitch]
};

// Thread-safety: one thread at a time; PackingOf from any.
class ExpertFfn {
 public:
  virtual ~ExpertFfn() = default;

  // Whether FfnStep::rows_in_place may be used.
  virtual bool reads_runs_in_place() const { return false; }

  // Bytes of Workspace::kProducts that a pair takes.
  virtual int64_t ProductBytesPerPair(const FfnShape& shape) const = 0;
  // Bytes of tables for steps of so many pairs.
  virtual int64_t TableBytes(int64_t num_pairs, int num_slots) const = 0;

  // Where the parts of the expert in `slot` go.
  enum class Part : uint8_t { kUp, kGate, kDown };
  virtual PackTarget TargetOf(const CudaLayer& layer, int slot, Part part) const = 0;

  // Writes the step's tables with CudaDevice::NewTable; they are uploaded before Run. Returns into how many parts an
  // output will be cut, all of which are to be added; at most `max_parts`.
  virtual absl::StatusOr<int> MakeTables(const CudaLayer& layer, const RankPlanView& plan, int64_t max_parts) = 0;

  // Enqueues the products.
  virtual absl::Status Run(const CudaLayer& layer, const FfnStep& step) = 0;
};

std::unique_ptr<ExpertFfn> CreateCublasFfn(CudaDevice* device, DType dtype, bool allow_tf32);
// FAILED_PRECONDITION when the device has not the instructions.
absl::StatusOr<std::unique_ptr<ExpertFfn>> CreateHopperFfn(CudaDevice* device, DType dtype);

}  // namespace switchyard
