#include "worker/loading/expert_digest.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <utility>

#include "base/tensor/buffer.h"

namespace switchyard {
namespace {

constexpr int64_t kDim = 24, kInner = 40;

// An expert with every part, whose bytes a test may change.
struct Expert {
  HostMatrix up = Made(kInner, kDim, 1), gate = Made(kInner, kDim, 2), down = Made(kDim, kInner, 3);
  HostMatrix up_bias = Made(1, kInner, 4), gate_bias = Made(1, kInner, 5), down_bias = Made(1, kDim, 6);

  static HostMatrix Made(int64_t num_rows, int64_t num_cols, int seed) {
    HostMatrix matrix = HostMatrix::Allocate(DType::kBF16, num_rows, num_cols);
    auto* const bytes = reinterpret_cast<unsigned char*>(matrix.buffer.data());
    for (size_t i = 0; i < matrix.buffer.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 7 + seed);
    return matrix;
  }

  ExpertWeights weights() const {
    ExpertWeights weights;
    weights.up = {up.view()};
    weights.gate = {gate.view()};
    weights.down = {down.view()};
    weights.up_bias = up_bias.view();
    weights.gate_bias = gate_bias.view();
    weights.down_bias = down_bias.view();
    return weights;
  }
};

TEST(ExpertDigest, IsOfTheBytesWhereverTheyLie) {
  Expert one, same;
  EXPECT_EQ(DigestOf(one.weights()), DigestOf(same.weights()));
}

TEST(ExpertDigest, EveryByteOfASmallPartCounts) {
  Expert expert;
  std::set<uint64_t> digests = {DigestOf(expert.weights())};
  size_t num_cases = 1;
  for (HostMatrix* part :
       {&expert.up, &expert.gate, &expert.down, &expert.up_bias, &expert.gate_bias, &expert.down_bias}) {
    for (size_t i = 0; i < part->buffer.size(); ++i) {
      std::byte& byte = part->buffer.data()[i];
      byte ^= std::byte{0x80};  // the sign of a weight, for every second byte
      digests.insert(DigestOf(expert.weights()));
      byte ^= std::byte{0x80};
      ++num_cases;
    }
  }
  EXPECT_EQ(digests.size(), num_cases);
}

// With rows as long as the blocks of which a line is taken, a line that did not move would miss most columns.
TEST(ExpertDigest, EveryRowAndColumnOfALargePartCounts) {
  constexpr int64_t kNumRows = 256, kNumCols = 2048;
  Expert expert;
  expert.up = Expert::Made(kNumRows, kNumCols, 1);
  ASSERT_GT(expert.up.buffer.size(), kWholeBytes);
  auto* const elements = reinterpret_cast<uint16_t*>(expert.up.buffer.data());
  const uint64_t whole = DigestOf(expert.weights());
  const auto negate = [&](int64_t first, int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; ++i) elements[first + i * step] ^= 0x8000;
  };
  const auto is_noticed = [&](int64_t first, int64_t count, int64_t step) {
    negate(first, count, step);
    const bool differs = DigestOf(expert.weights()) != whole;
    negate(first, count, step);
    return differs;
  };
  for (int64_t row = 0; row < kNumRows; ++row) EXPECT_TRUE(is_noticed(row * kNumCols, kNumCols, 1)) << "row " << row;
  for (int64_t col = 0; col < kNumCols; ++col) EXPECT_TRUE(is_noticed(col, kNumRows, kNumCols)) << "column " << col;
  EXPECT_TRUE(is_noticed(kNumRows * kNumCols - 1, 1, 1)) << "the last element";
  EXPECT_EQ(DigestOf(expert.weights()), whole);
}

TEST(ExpertDigest, PartsThatChangePlacesOrFormCount) {
  Expert expert;
  const ExpertWeights whole = expert.weights();
  std::set<uint64_t> digests = {DigestOf(whole)};
  ExpertWeights other = whole;
  std::swap(other.up, other.gate);
  digests.insert(DigestOf(other));
  other = whole;
  other.up.transposed = true;
  digests.insert(DigestOf(other));
  other = whole;
  other.gate = {};
  digests.insert(DigestOf(other));
  other = whole;
  other.down_bias = {};
  digests.insert(DigestOf(other));
  EXPECT_EQ(digests.size(), 5u);
}

}  // namespace
}  // namespace switchyard
