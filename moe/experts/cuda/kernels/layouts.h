// The layouts of weights and rows in GPU memory, and the tables that tell kernels which rows belong to which expert.
// Host and device code share these definitions.
//
// Grouped rows. The pairs (row, expert) of a step, sorted by expert: pair p is row p of matrices [num_pairs, width]
// whose rows are padded to a multiple of 64 elements with zeros. RankPlanView's pairs come in this order.
//
// Packed weights. A weight matrix [M, K] is cut into blocks of 64 × 64 elements, zero-padded at the edges. Block
// (m, k) of an expert's matrix is 8 KiB, in the layout that the tensor cores read in shared memory: row r at byte 128
// r, its 16-byte pieces permuted by XOR with r modulo 8. Blocks are in the order [slot][m][k], so that a tile of 64
// output features is one sequential read over all of K.
//
// Gated layers have gate and up in one matrix of 2H rows: 8 rows of gate, then the 8 rows of up for the same outputs,
// and so on. One thread of a matrix product thus holds both factors of an output.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SY_HOST_DEVICE __host__ __device__
#else
#define SY_HOST_DEVICE
#endif

namespace switchyard {

inline constexpr int kBlockDim = 64;                          // elements of a weight block, each way
inline constexpr int kBlockElements = kBlockDim * kBlockDim;  // 16-bit elements: 8 KiB
inline constexpr int kInterleave = 8;                         // rows of gate before as many rows of up

SY_HOST_DEVICE constexpr int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
SY_HOST_DEVICE constexpr int64_t CeilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Elements that a grouped row of `width` elements takes, padding included.
SY_HOST_DEVICE constexpr int64_t RowPitch(int64_t width) { return RoundUp(width, kBlockDim); }

// Offset of element (row, col) in a packed matrix of `num_k_blocks` block columns, in elements.
SY_HOST_DEVICE inline int64_t PackedOffset(int64_t row, int64_t col, int64_t num_k_blocks) {
  const int64_t block = (row / kBlockDim) * num_k_blocks + col / kBlockDim;
  const int64_t r = row % kBlockDim;
  const int64_t c = col % kBlockDim;
  return block * kBlockElements + r * kBlockDim + ((c / 8) ^ (r % 8)) * 8 + c % 8;
}

// The row of a gated layer's joint matrix for output `h` of gate or, if `is_up`, of up.
SY_HOST_DEVICE constexpr int64_t InterleavedRow(int64_t h, bool is_up) {
  return h / kInterleave * (2 * kInterleave) + (is_up ? kInterleave : 0) + h % kInterleave;
}

// Consecutive tiles of one expert's grouped rows. Tiles of a group are computed close together in time, so that they
// share what they read through the cache.
struct TileGroup {
  int32_t slot = 0;        // the expert's slot
  int32_t first_row = 0;   // the group's first grouped row
  int32_t source_row = 0;  // the received row of that grouped row, for rows read in place
  int32_t num_rows = 0;
  int32_t rows_per_tile = 0;  // rows of every tile except the last, which may have fewer
  int32_t num_tiles = 0;
  int32_t first_tile = 0;  // tiles in the groups before this one
};

}  // namespace switchyard
