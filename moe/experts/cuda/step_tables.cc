#include "moe/experts/cuda/step_tables.h"

#include <algorithm>

namespace switchyard {
namespace {

// Tiles of one expert that are computed close together in time: enough that weights are read from memory once for many
// rows, and few enough that these rows stay in the L2 meanwhile.
constexpr int kMaxGroupTiles = 8;

// The tensor cores' products are 8 rows or a multiple of 16 rows wide.
int TileWidth(int num_rows) { return num_rows <= 8 ? 8 : static_cast<int>(RoundUp(num_rows, 16)); }

// Counting sort of the entries of `rows` by their value. Entry i is listed `num_parts` times, as i, i + rows.size(), ….
void ListByRow(std::span<const int32_t> rows, std::span<const float> weights, int num_parts,
               const HostRowLists& lists) {
  std::fill(lists.offsets.begin(), lists.offsets.end(), 0);
  for (const int32_t row : rows) lists.offsets[row + 1] += num_parts;
  for (size_t i = 1; i < lists.offsets.size(); ++i) lists.offsets[i] += lists.offsets[i - 1];
  const int32_t num_entries = static_cast<int32_t>(rows.size());
  for (int32_t i = 0; i < num_entries; ++i) {
    for (int part = 0; part < num_parts; ++part) {
      const int32_t at = lists.offsets[rows[i]]++;
      lists.indices[at] = part * num_entries + i;
      if (!lists.weights.empty()) lists.weights[at] = weights[i];
    }
  }
  // Each offset now points to the end of its list, where the next list begins: shift them by one.
  for (size_t i = lists.offsets.size() - 1; i > 0; --i) lists.offsets[i] = lists.offsets[i - 1];
  lists.offsets[0] = 0;
}

}  // namespace

void ListPairs(const RankPlanView& plan, int num_parts, const HostRowLists& lists) {
  ListByRow(plan.pair_rows, plan.pair_weights, num_parts, lists);
}

void ListReturns(const RankPlanView& plan, const HostRowLists& lists) { ListByRow(plan.send_rows, {}, 1, lists); }

int RowsPerTile(int num_rows, int max_tile_rows) {
  return TileWidth(static_cast<int>(CeilDiv(num_rows, CeilDiv(num_rows, max_tile_rows))));
}

int CutTiles(const RankPlanView& plan, int max_tile_rows, std::vector<TileGroup>& groups) {
  int num_tiles = 0;
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    const int32_t begin = plan.expert_offsets[slot];
    const int32_t num_rows = plan.expert_offsets[slot + 1] - begin;
    if (num_rows == 0) continue;
    const int rows_per_tile = RowsPerTile(num_rows, max_tile_rows);
    for (int32_t done = 0; done < num_rows;) {
      const int32_t rows = std::min(num_rows - done, rows_per_tile * kMaxGroupTiles);
      const int tiles = static_cast<int>(CeilDiv(rows, rows_per_tile));
      groups.push_back({slot, begin + done, plan.pair_rows[begin + done], rows, rows_per_tile, tiles, num_tiles});
      num_tiles += tiles;
      done += rows;
    }
  }
  return num_tiles;
}

bool TakesRuns(const RankPlanView& plan) {
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    for (int32_t i = plan.expert_offsets[slot] + 1; i < plan.expert_offsets[slot + 1]; ++i) {
      if (plan.pair_rows[i] != plan.pair_rows[i - 1] + 1) return false;
    }
  }
  return true;
}

int64_t MaxGroups(int64_t num_pairs, int num_slots, int max_tile_rows) {
  // If an expert has several tiles, they are at least half full on average.
  return num_slots + CeilDiv(num_pairs, max_tile_rows / 2);
}

}  // namespace switchyard
