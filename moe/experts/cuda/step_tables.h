// The tables that the kernels of a step read, made from its plan on the host: which grouped rows belong to a received
// row, and the tiles of each expert's rows.
//
// Functions write into memory of the sizes that they ask for and are pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/experts/cuda/layouts.h"
#include "moe/plan/step_plan.h"

namespace switchyard {

// Lists of RowLists (row_kernels.h): `offsets` [num_rows + 1], `indices` and `weights` one per entry.
struct HostRowLists {
  std::span<int32_t> offsets;
  std::span<int32_t> indices;
  std::span<float> weights;  // may be empty: not wanted
};

// For every received row its pairs, in expert order. A pair's output has `num_parts` parts, part s of pair p being row
// s · num_pairs + p; all of them are listed. Sizes: num_recv_rows + 1, num_pairs · num_parts.
void ListPairs(const RankPlanView& plan, int num_parts, const HostRowLists& lists);

// For every home row the places in the send order that it was sent from, in that order. Sizes: num_home_rows + 1,
// num_send_rows.
void ListReturns(const RankPlanView& plan, const HostRowLists& lists);

// Rows of the tiles that `num_rows` rows are cut into: as few tiles as can be, as even as can be, and a width that the
// tensor cores have.
int RowsPerTile(int num_rows, int max_tile_rows);

// Cuts each expert's pairs into tiles of at most `max_tile_rows`, as even as can be, and appends their groups. Returns
// the number of tiles.
int CutTiles(const RankPlanView& plan, int max_tile_rows, std::vector<TileGroup>& groups);

// Whether the rows of every expert follow one another among the received rows, so that they can be read where they are:
// steps of one row, and layers all of whose experts take every row.
bool TakesRuns(const RankPlanView& plan);

// The most groups that CutTiles can make for so many pairs.
int64_t MaxGroups(int64_t num_pairs, int num_slots, int max_tile_rows);

}  // namespace switchyard
