// Makes the tables that a step's kernels read, from its plan and on the host: the grouped rows that belong to each
// received row, and the tiles of each expert's rows.
//
// All functions are pure; the caller provides the memory, of the sizes given at each function.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/experts/cuda/kernels/layouts.h"
#include "moe/plan/step_plan.h"

namespace switchyard {

// Lists of RowLists (kernels/row_kernels.h): `offsets` [num_rows + 1], `indices` and `weights` one per entry.
struct HostRowLists {
  std::span<int32_t> offsets;
  std::span<int32_t> indices;
  std::span<float> weights;  // empty when weights are not wanted
};

// Lists every received row's pairs, in expert order. A pair's output has `num_parts` parts, all of which are listed:
// part s of pair p is row s · num_pairs + p. Sizes: num_recv_rows + 1, num_pairs · num_parts.
void ListPairs(const RankPlanView& plan, int num_parts, const HostRowLists& lists);

// Lists every home row's positions in the send buffer, in increasing order. Sizes: num_home_rows + 1, num_send_rows.
void ListReturns(const RankPlanView& plan, const HostRowLists& lists);

// The number of rows per tile when `num_rows` rows are cut into as few and as even tiles as possible, rounded up to a
// width that the tensor cores support.
int RowsPerTile(int num_rows, int max_tile_rows);

// Cuts each expert's pairs into tiles of at most `max_tile_rows` rows, as even as possible, and appends the tiles'
// groups to `groups`. Returns the number of tiles.
int CutTiles(const RankPlanView& plan, int max_tile_rows, std::vector<TileGroup>& groups);

// Whether each expert's rows are consecutive among the received rows, so that they can be read in place. This is so in
// steps of one row and in layers where every expert takes every row.
bool TakesRuns(const RankPlanView& plan);

// The most groups that CutTiles can make of `num_pairs` pairs.
int64_t MaxGroups(int64_t num_pairs, int num_slots, int max_tile_rows);

}  // namespace switchyard
