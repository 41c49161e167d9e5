// The shapes of tiles, and the shared-memory layout of each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/experts/cuda/kernels/layouts.h"

namespace switchyard {

// The work that a thread block does at a time: a tile of rows and a few block rows of weights.
struct WorkUnit {
  int slot;
  int first_row;
  int source_row;
  int num_rows;  // 0 means that there is no more work
  int m_block;   // first block row of the whole cluster
  int first_k;   // block columns [first_k, first_k + num_k)
  int num_k;
  int split;
};

// `kRows_` is the most rows of a tile, `kBoxRows_` the rows that one copy brings, and `kCluster_` the number of thread
// blocks that share the rows they read. Each of the two warpgroups that multiply has its own block row of weights.
//
// Weights come from memory and rows from the L2. Each has a ring of its own, whose depth suits its latency.
template <int kRows_, int kBoxRows_, int kCluster_, int kWeightStages_, int kRowStages_>
struct TileShape {
  static constexpr int kRows = kRows_;
  static constexpr int kBoxRows = kBoxRows_;
  static constexpr int kWarpgroups = 2;
  static constexpr int kCluster = kCluster_;
  static constexpr int kWeightStages = kWeightStages_;
  static constexpr int kRowStages = kRowStages_;

  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kBlockBytes = kBlockElements * 2;
  static constexpr int kBoxBytes = kBoxRows * kBlockDim * 2;
  static constexpr int kRowBytes = kRows * kBlockDim * 2;
  static constexpr int kAccumulators = kRows / 2;
  static constexpr int kUnitStages = 4;

  // Outputs pass through shared memory so that they are stored as whole 16-byte pieces of rows. Each warp does so by
  // itself, in chunks of rows that are padded against bank conflicts.
  static constexpr int kChunkRows = kRows < 32 ? kRows : 32;
  static constexpr int kOutPitch = 48;

  struct Shared {
    alignas(1024) std::byte weights[kWeightStages][kWarpgroups * kBlockBytes];
    alignas(1024) std::byte rows[kRowStages][kRowBytes];
    alignas(16) std::byte out[kWarpgroups * 4][kChunkRows * kOutPitch];
    uint64_t weights_full[kWeightStages], weights_empty[kWeightStages];
    uint64_t rows_full[kRowStages], rows_empty[kRowStages];
    uint64_t units_full[kUnitStages], units_empty[kUnitStages];
    WorkUnit units[kUnitStages];
  };
  static constexpr int kSharedBytes = sizeof(Shared) + 1024;  // 1024 more to align it
};

using Rows16 = TileShape<16, 16, 1, 10, 6>;
using Rows32 = TileShape<32, 32, 1, 10, 6>;
using Rows64 = TileShape<64, 64, 1, 8, 6>;
using Rows128 = TileShape<128, 64, 2, 8, 5>;
using Rows256 = TileShape<256, 64, 2, 5, 4>;

// A position in a ring of stages, and its phase.
template <int kStages>
struct RingCursor {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace switchyard
