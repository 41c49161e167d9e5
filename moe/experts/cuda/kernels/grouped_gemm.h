// One matrix product per expert, all in one kernel, on Hopper's tensor cores (sm_90a):
//
//   out[p, :] = act(W[slot of p] · x[p, :] + bias[slot of p])        for every grouped row p
//
// x [num_pairs, K] and out [num_pairs, N] are grouped rows and W is packed weights (layouts.h). Sums are fp32; x and
// out are bf16 or fp16. In gated products W and bias hold both gate and up, and out[p, h] = act(gate_h) · up_h;
// inner_formula.h has all forms of the formula.
//
// Weights are the first operand of the tensor cores' product and rows the second, because experts have few rows and
// rarely a round number of them, and only the second operand may be 8, 16, 32, … 256 wide. A tile therefore computes
// little more than its rows, from one row per expert to thousands.
//
// Thread blocks are persistent: each takes unit after unit of work (a tile of rows and some block rows of weights).
// Their warps have different tasks: one finds the units, one keeps a ring of weights full, one keeps a ring of rows
// full, and two warpgroups multiply and write out. Weights are constant, so their ring fills while the previous kernel
// still runs (programmatic dependent launch).
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "base/tensor/dtype.h"
#include "moe/experts/cuda/kernels/inner_formula.h"
#include "moe/experts/cuda/kernels/layouts.h"

namespace switchyard {

// Sizes of tiles. More rows per tile use the tensor cores better; fewer leave room for more weights in flight.
enum class GemmTile : uint8_t {
  kRows16 = 0,   // 128 features × up to 16 rows: the most weights in flight
  kRows32 = 1,   // 128 × up to 32
  kRows64 = 2,   // 128 × up to 64
  kRows128 = 3,  // 2 × 128 × up to 128: pairs of thread blocks share the rows that they read
  kRows256 = 4,  // 2 × 128 × up to 256: the fewest bytes per product
};
inline constexpr int kNumGemmTiles = 5;

// A tile's sizes, for choosing one.
struct GemmTileSize {
  int max_rows = 0;  // rows of one tile, at most
  int box_rows = 0;  // rows that one copy brings
  int m_blocks = 0;  // block rows of weights per unit of work
  int cluster = 0;   // thread blocks per unit of work, one to a multiprocessor
};
GemmTileSize SizeOf(GemmTile tile);

// The copy engine's map of a matrix of grouped rows [capacity, pitch].
struct RowsMap {
  CUtensorMap map;
};
// `rows` is 16-byte aligned device memory; `pitch` (elements) is a multiple of 64.
absl::StatusOr<RowsMap> MakeRowsMap(DType dtype, const void* rows, int64_t capacity, int64_t pitch, GemmTile tile);

struct GroupedGemmArgs {
  const void* weights = nullptr;      // all slots' packed weights
  const float* bias = nullptr;        // [num_slots, 64 · m_blocks] in packed row order, or null
  void* out = nullptr;                // grouped rows
  int64_t out_pitch = 0;              // elements
  bool in_place = false;              // a group's rows begin at TileGroup::source_row of the map, not at first_row
  const TileGroup* groups = nullptr;  // device memory
  int num_groups = 0;
  int num_tiles = 0;  // over all groups
  int m_blocks = 0;   // block rows of one expert's matrix
  int k_blocks = 0;   // block columns
  // Each sum is cut into `k_splits` parts along K, and part s of row p goes to row p of out + s · split_stride. This
  // gives more thread blocks work where there are few rows. Only for products without activation.
  int k_splits = 1;
  int64_t split_stride = 0;  // elements
  bool gated = false;
  InnerForm form = InnerForm::kNone;
  SwishConstants<float> swish;  // for kSwish
};

// Enqueues the product, which uses at most `max_blocks` multiprocessors.
absl::Status LaunchGroupedGemm(DType dtype, GemmTile tile, const RowsMap& rows, const GroupedGemmArgs& args,
                               int max_blocks, cudaStream_t stream);

// Lets the kernels use all of shared memory. Call it once per process and device.
absl::Status PrepareGroupedGemm();

}  // namespace switchyard
