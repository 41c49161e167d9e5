// Chooses the kernel for a matrix product by the shape of the step. All decisions that rest on measurements are here.
#pragma once

#include <cstdint>
#include <span>

#include "moe/experts/cuda/kernels/grouped_gemm.h"

namespace switchyard {

// The tile for the products of the experts' packed matrices, m_blocks × k_blocks blocks each, with their rows.
// `expert_offsets` [num_slots + 1] is as in RankPlanView.
GemmTile ChooseTile(std::span<const int32_t> expert_offsets, int m_blocks, int k_blocks, int num_multiprocessors);

// The number of parts to cut each sum along K into, for a product of `num_tiles` tiles with a matrix of m_blocks ×
// k_blocks blocks, so that `num_multiprocessors` have enough work.
int ChooseSplits(GemmTile tile, int num_tiles, int m_blocks, int k_blocks, int num_multiprocessors);

}  // namespace switchyard
