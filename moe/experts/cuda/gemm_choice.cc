#include "moe/experts/cuda/gemm_choice.h"

#include <algorithm>
#include <cmath>

#include "moe/experts/cuda/step_tables.h"

namespace switchyard {
namespace {

// Rates of an H200 per clock cycle, measured with all of its multiprocessors busy. Only their ratios matter.
constexpr double kMemoryBytesPerCycle = 2400;  // from memory to all multiprocessors together
constexpr double kL2BytesPerCycle = 36;        // from the L2 to each multiprocessor when all of them read
constexpr double kMaxL2BytesPerCycle = 64;     // from the L2 to one multiprocessor, however few read
constexpr double kCyclesPerRow = 4;      // per row, to multiply two block rows of weights by one block column of rows
constexpr double kMinBlockCycles = 150;  // per block column at least, however few the rows
constexpr double kUnitCycles = 1500;     // to start a unit of work and to write out its result
// The fraction of the shorter of two concurrent activities that is not hidden behind the longer one.
constexpr double kUnhidden = 0.25;

// From this many units of work per multiprocessor on, the uneven end of the last round does not matter.
constexpr int kEnoughUnits = 4;
// Block columns per part of a split sum, at least: writing out a shorter sum takes longer than computing it.
constexpr int kMinSplitBlocks = 16;
constexpr int kMaxSplits = 8;

constexpr double kBlockBytes = kBlockElements * 2.0;

double BothCycles(double a, double b) { return std::max(a, b) + kUnhidden * std::min(a, b); }

// The L2's rate to each of `num_active` multiprocessors.
double L2BytesPerCycle(double num_active, int num_multiprocessors) {
  return std::min(kMaxL2BytesPerCycle, kL2BytesPerCycle * num_multiprocessors / std::max(num_active, 1.0));
}

double UnitCycles(const GemmTileSize& size, int tile_rows, int k_blocks, double l2_bytes_per_cycle) {
  const double row_bytes = static_cast<double>(RoundUp(tile_rows, size.box_rows)) * kBlockDim * 2 / size.cluster;
  const double l2 = (2 * kBlockBytes + row_bytes) / l2_bytes_per_cycle;
  return k_blocks * std::max({kCyclesPerRow * tile_rows, l2, kMinBlockCycles}) + kUnitCycles;
}

double StepCycles(GemmTile tile, std::span<const int32_t> offsets, int m_blocks, int k_blocks,
                  int num_multiprocessors) {
  const GemmTileSize size = SizeOf(tile);
  const double m_units = static_cast<double>(CeilDiv(m_blocks, size.m_blocks));
  const double places = std::max(1, num_multiprocessors / size.cluster);
  double units = 0, active_experts = 0;
  for (size_t slot = 0; slot + 1 < offsets.size(); ++slot) {
    const int rows = offsets[slot + 1] - offsets[slot];
    units += static_cast<double>(CeilDiv(rows, size.max_rows)) * m_units;
    active_experts += rows > 0 ? 1 : 0;
  }
  const double l2 = L2BytesPerCycle(std::min(units, places) * size.cluster, num_multiprocessors);
  double all_cycles = 0, longest = 0;
  for (size_t slot = 0; slot + 1 < offsets.size(); ++slot) {
    const int rows = offsets[slot + 1] - offsets[slot];
    if (rows == 0) continue;
    const double cycles = UnitCycles(size, RowsPerTile(rows, size.max_rows), k_blocks, l2);
    all_cycles += static_cast<double>(CeilDiv(rows, size.max_rows)) * m_units * cycles;
    longest = std::max(longest, cycles);
  }
  const double rounds = units / places;
  const double compute = rounds >= kEnoughUnits ? all_cycles / places : std::ceil(rounds) * longest;
  return BothCycles(compute, active_experts * m_blocks * k_blocks * kBlockBytes / kMemoryBytesPerCycle);
}

}  // namespace

GemmTile ChooseTile(std::span<const int32_t> expert_offsets, int m_blocks, int k_blocks, int num_multiprocessors) {
  GemmTile best = GemmTile::kRows16;
  double best_cycles = 0;
  for (int i = 0; i < kNumGemmTiles; ++i) {
    const auto tile = static_cast<GemmTile>(i);
    const double cycles = StepCycles(tile, expert_offsets, m_blocks, k_blocks, num_multiprocessors);
    if (i == 0 || cycles < best_cycles) {
      best = tile;
      best_cycles = cycles;
    }
  }
  return best;
}

int ChooseSplits(GemmTile tile, int num_tiles, int m_blocks, int k_blocks, int num_multiprocessors) {
  const int64_t units = num_tiles * CeilDiv(m_blocks, SizeOf(tile).m_blocks);
  if (units == 0 || units >= 2 * num_multiprocessors) return 1;
  const int64_t wanted = CeilDiv(kEnoughUnits * num_multiprocessors, units);
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(wanted, k_blocks / kMinSplitBlocks), 1, kMaxSplits));
}

}  // namespace switchyard
