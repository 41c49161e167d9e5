// Which kernel multiplies, by the shape of the step: the one place for what was measured.
#pragma once

#include <cstdint>
#include <span>

#include "moe/experts/cuda/grouped_gemm.h"

namespace switchyard {

// The tile for products of packed matrices of m_blocks × k_blocks blocks with the rows that `expert_offsets`
// [num_slots + 1] gives each expert, as in RankPlanView.
GemmTile ChooseTile(std::span<const int32_t> expert_offsets, int m_blocks, int k_blocks, int num_multiprocessors);

// Into how many sums along K to cut a product of `num_tiles` tiles and a matrix of m_blocks × k_blocks blocks, so that
// `num_multiprocessors` have enough to do.
int ChooseSplits(GemmTile tile, int num_tiles, int m_blocks, int k_blocks, int num_multiprocessors);

}  // namespace switchyard
