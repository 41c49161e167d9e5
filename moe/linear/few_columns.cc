#include "moe/linear/few_columns.h"

#include <immintrin.h>

#include <algorithm>

namespace switchyard {
namespace {

constexpr int kMaxRows = 4;  // rows of a tile: its sums and operands fit the registers
constexpr int kMaxCols = 4;  // columns of a tile, likewise
constexpr int kMinSums = 8;  // independent sums that keep the multiplier busy

SY_BF16_PRODUCTS inline float SumOf(__m512 sums) {
  constexpr int kNumSums = 16;
  alignas(64) float values[kNumSums];
  _mm512_store_ps(values, sums);
  for (int width = kNumSums / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) values[i] += values[i + width];
  }
  return values[0];
}

// One tile's operands: columns of W from `packed` on, whose blocks lie block_stride elements apart.
struct Tile {
  const uint16_t* x;
  int64_t x_stride;
  const uint16_t* packed;
  int64_t block_stride;
  int64_t in_features;
  float* y;
  int64_t y_stride;
};

// kRows rows by kCols columns. When there are few sums, each is split into kSplits partial sums, which are added at the
// end.
template <int kRows, int kCols>
SY_BF16_PRODUCTS void MultiplyTile(const Tile& tile) {
  constexpr int kSplits = std::max(1, kMinSums / (kRows * kCols));
  __m512 sums[kSplits][kRows][kCols];
#pragma GCC unroll 8
  for (auto& split : sums) {
#pragma GCC unroll 4
    for (auto& row : split) {
#pragma GCC unroll 4
      for (__m512& sum : row) sum = _mm512_setzero_ps();
    }
  }
  const auto add = [&](int64_t block, __mmask32 lanes, int split) SY_BF16_PRODUCTS __attribute__((always_inline)) {
    __m512bh w[kCols];
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      w[c] = (__m512bh)_mm512_loadu_si512(tile.packed + block * tile.block_stride + c * kFewColumnsBlock);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const uint16_t* const row = tile.x + r * tile.x_stride + block * kFewColumnsBlock;
      const __m512bh x = (__m512bh)_mm512_maskz_loadu_epi16(lanes, row);
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) sums[split][r][c] = _mm512_dpbf16_ps(sums[split][r][c], x, w[c]);
    }
  };
  constexpr __mmask32 kAll = ~__mmask32{0};
  const int64_t num_whole = tile.in_features / kFewColumnsBlock, num_left = tile.in_features % kFewColumnsBlock;
  int64_t block = 0;
  for (; block + kSplits <= num_whole; block += kSplits) {
#pragma GCC unroll 8
    for (int split = 0; split < kSplits; ++split) add(block + split, kAll, split);
  }
  for (; block < num_whole; ++block) add(block, kAll, 0);
  if (num_left > 0) add(block, (__mmask32{1} << num_left) - 1, 0);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      __m512 total = sums[0][r][c];
#pragma GCC unroll 8
      for (int split = 1; split < kSplits; ++split) total = _mm512_add_ps(total, sums[split][r][c]);
      tile.y[r * tile.y_stride + c] = SumOf(total);
    }
  }
}

using TileFn = void (*)(const Tile&);

template <int kRows>
constexpr TileFn kTilesOf[kMaxCols] = {MultiplyTile<kRows, 1>, MultiplyTile<kRows, 2>, MultiplyTile<kRows, 3>,
                                       MultiplyTile<kRows, 4>};
constexpr const TileFn* kTiles[kMaxRows] = {kTilesOf<1>, kTilesOf<2>, kTilesOf<3>, kTilesOf<4>};

// Splits `whole` into as few parts as possible, of about equal size and at most `most` each; returns the size of the
// largest.
int64_t PartOf(int64_t whole, int64_t most) {
  const int64_t num_parts = (whole + most - 1) / most;
  return (whole + num_parts - 1) / num_parts;
}

}  // namespace

void PackFewColumns(const uint16_t* weight, int64_t in_features, int num_cols, uint16_t* packed) {
  for (int64_t begin = 0; begin < in_features; begin += kFewColumnsBlock) {
    const int64_t count = std::min(kFewColumnsBlock, in_features - begin);
    for (int c = 0; c < num_cols; ++c, packed += kFewColumnsBlock) {
      std::fill(std::copy_n(weight + c * in_features + begin, count, packed), packed + kFewColumnsBlock, 0);
    }
  }
}

void MultiplyFewColumns(const Bf16Product& p) {
  int64_t num_rows = 0;
  for (int64_t row = 0; row < p.num_rows; row += num_rows) {
    num_rows = PartOf(p.num_rows - row, kMaxRows);
    int64_t num_cols = 0;
    for (int64_t col = 0; col < p.num_cols; col += num_cols) {
      num_cols = PartOf(p.num_cols - col, kMaxCols);
      kTiles[num_rows - 1][num_cols - 1]({.x = p.x + row * p.x_stride,
                                          .x_stride = p.x_stride,
                                          .packed = p.packed + col * kFewColumnsBlock,
                                          .block_stride = p.num_cols * kFewColumnsBlock,
                                          .in_features = p.in_features,
                                          .y = p.y + row * p.y_stride + col,
                                          .y_stride = p.y_stride});
    }
  }
}

}  // namespace switchyard
