#include "moe/linear/few_rows.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace switchyard {
namespace {

constexpr int kLanes = 16;        // columns in a register
constexpr int kMaxRows = 6;       // rows of a tile: their sums, four registers each, fit the registers
constexpr int kMinSums = 8;       // independent sums that keep the multiplier busy
constexpr int kPairElements = 2;  // bf16 in a pair

SY_BF16_PRODUCTS inline __m512bh Pairs(const uint16_t* packed) { return (__m512bh)_mm512_loadu_si512(packed); }

SY_BF16_PRODUCTS inline __m512bh BroadcastPair(const uint16_t* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof(pair));
  return (__m512bh)_mm512_set1_epi32(pair);
}

// kRows rows by the first kVectors · 16 columns. With few rows the sum over k is split into kSplits partial sums, which
// are added at the end.
template <int kRows, int kVectors>
SY_BF16_PRODUCTS void MultiplyTile(const Bf16Product& p) {
  constexpr int kSplits = std::max(1, kMinSums / (kRows * kVectors));
  __m512 sums[kSplits][kRows][kVectors];
  for (auto& split : sums) {
    for (auto& row : split) {
      for (__m512& sum : row) sum = _mm512_setzero_ps();
    }
  }
  const int64_t num_pairs = p.in_features / kPairElements;
  const auto add = [&](int64_t pair, int split) SY_BF16_PRODUCTS __attribute__((always_inline)) {
    __m512bh w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      w[v] = Pairs(p.packed + pair * kFewRowsBlock * kPairElements + v * kLanes * kPairElements);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh x = BroadcastPair(p.x + r * p.x_stride + pair * kPairElements);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[split][r][v] = _mm512_dpbf16_ps(sums[split][r][v], w[v], x);
    }
  };
  int64_t pair = 0;
  for (; pair + kSplits <= num_pairs; pair += kSplits) {
#pragma GCC unroll 8
    for (int split = 0; split < kSplits; ++split) add(pair + split, split);
  }
  for (; pair < num_pairs; ++pair) add(pair, 0);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      __m512 total = sums[0][r][v];
      for (int split = 1; split < kSplits; ++split) total = _mm512_add_ps(total, sums[split][r][v]);
      const int num_valid = std::clamp(p.num_cols - v * kLanes, 0, kLanes);
      const __mmask16 valid = static_cast<__mmask16>((1u << num_valid) - 1);
      _mm512_mask_storeu_ps(p.y + r * p.y_stride + v * kLanes, valid, total);
    }
  }
}

template <int kVectors>
void MultiplyRows(const Bf16Product& p) {
  using Tile = void (*)(const Bf16Product&);
  constexpr Tile kTiles[kMaxRows] = {MultiplyTile<1, kVectors>, MultiplyTile<2, kVectors>, MultiplyTile<3, kVectors>,
                                     MultiplyTile<4, kVectors>, MultiplyTile<5, kVectors>, MultiplyTile<6, kVectors>};
  Bf16Product tile = p;
  // As few tiles as possible, of about equal height.
  for (int64_t left = p.num_rows, num_tiles = (left + kMaxRows - 1) / kMaxRows; num_tiles > 0; --num_tiles) {
    tile.num_rows = (left + num_tiles - 1) / num_tiles;
    kTiles[tile.num_rows - 1](tile);
    tile.x += tile.num_rows * tile.x_stride;
    tile.y += tile.num_rows * tile.y_stride;
    left -= tile.num_rows;
  }
}

}  // namespace

void MultiplyFewRows(const Bf16Product& product) {
  if (product.num_cols <= kLanes) return MultiplyRows<1>(product);
  if (product.num_cols <= 2 * kLanes) return MultiplyRows<2>(product);
  MultiplyRows<4>(product);
}

}  // namespace switchyard
