// One matrix product per expert, all in one kernel, on Hopper's tensor cores (sm_90a):
//
//   out[p, :] = act(W[slot of p] · x[p, :] + bias[slot of p])        for every grouped row p
//
// x [num_pairs, K] and out [num_pairs, N] are grouped rows and W packed weights (layouts.h); sums are fp32, x and out
// bf16 or fp16. In gated products W and bias hold gate and up and out[p, h] = act(gate_h) · up_h; inner_formula.h has
// all the forms of it.
//
// Weights are the first operand of the tensor cores' product and rows the second: experts have few rows and never a
// round number of them, and only the second operand may be 8, 16, 32, … 256 wide. So a tile computes little more than
// its rows, from one row per expert to thousands.
//
// Blocks are persistent: each takes unit after unit of work (a tile of rows and some block rows of weights). Their
// warps have parts: one finds the units, one keeps a ring of weights full and one a ring of rows, and two warpgroups
// multiply and write out. Weights are constant, so their ring fills while the kernel before this one still runs
// (programmatic dependent launch).
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "base/tensor/dtype.h"
#include "moe/experts/cuda/inner_formula.h"
#include "moe/experts/cuda/layouts.h"

namespace switchyard {

// Sizes of tiles. More rows per tile use the tensor cores better; fewer leave room for more of the weights on their
// way.
enum class GemmTile : uint8_t {
  kRows16 = 0,   // 128 features × up to 16 rows: as many weights on their way as can be
  kRows32 = 1,   // 128 × up to 32
  kRows64 = 2,   // 128 × up to 64
  kRows128 = 3,  // 2 × 128 × up to 128: pairs of blocks share the rows they read
  kRows256 = 4,  // 2 × 128 × up to 256: the fewest bytes per product
};
inline constexpr int kNumGemmTiles = 5;

// What a tile is made of, for those who choose.
struct GemmTileSize {
  int max_rows = 0;  // of one tile
  int box_rows = 0;  // that one copy brings
  int m_blocks = 0;  // block rows of weights of one unit of work
  int cluster = 0;   // thread blocks of one unit, one to a multiprocessor
};
GemmTileSize SizeOf(GemmTile tile);

// A matrix of grouped rows [capacity, pitch] as the copy engine sees it.
struct RowsMap {
  CUtensorMap map;
};
// `rows` is 16-byte aligned device memory; `pitch` (elements) is a multiple of 64.
absl::StatusOr<RowsMap> MakeRowsMap(DType dtype, const void* rows, int64_t capacity, int64_t pitch, GemmTile tile);

struct GroupedGemmArgs {
  const void* weights = nullptr;      // packed, of all slots
  const float* bias = nullptr;        // [num_slots, 64 · m_blocks] in packed row order, or null
  void* out = nullptr;                // grouped rows
  int64_t out_pitch = 0;              // elements
  bool in_place = false;              // rows are at TileGroup::source_row of the map
  const TileGroup* groups = nullptr;  // device memory
  int num_groups = 0;
  int num_tiles = 0;  // over all groups
  int m_blocks = 0;   // block rows of one expert's matrix
  int k_blocks = 0;   // block columns
  // Each sum is cut into so many along K, and sum s of row p goes to row p of out + s · split_stride: more blocks at
  // work where there are few rows. Only for products without activation.
  int k_splits = 1;
  int64_t split_stride = 0;  // elements
  bool gated = false;
  InnerForm form = InnerForm::kNone;
  SwishConstants<float> swish;  // of kSwish
};

// Enqueues the product. `max_blocks` bounds the multiprocessors that it uses.
absl::Status LaunchGroupedGemm(DType dtype, GemmTile tile, const RowsMap& rows, const GroupedGemmArgs& args,
                               int max_blocks, cudaStream_t stream);

// Once per process and device: lets the kernels use all of shared memory.
absl::Status PrepareGroupedGemm();

}  // namespace switchyard
