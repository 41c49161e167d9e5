#include "server/requests/request.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "base/tensor/convert.h"

namespace switchyard {
namespace {

std::vector<std::byte> Bytes(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// Cuts the bytes at random places, empty chunks included.
std::vector<std::span<const std::byte>> CutAtRandom(std::span<const std::byte> bytes, std::mt19937& random) {
  std::vector<std::span<const std::byte>> chunks;
  while (!bytes.empty()) {
    const size_t count = std::min<size_t>(bytes.size(), random() % 11);
    chunks.push_back(bytes.first(count));
    bytes = bytes.subspan(count);
  }
  return chunks;
}

TEST(ChunkedRows, ElementsThatStraddleChunksAreWhole) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> values(1 + random() % 50);
    for (float& value : values) value = static_cast<float>(random() % 1000);
    const auto bytes = Bytes(values);
    ChunkedRows rows(CutAtRandom(bytes, random), nullptr);
    EXPECT_EQ(rows.size_bytes(), bytes.size());
    std::vector<double> read(values.size());
    const size_t first = random() % (values.size() + 1);
    rows.ReadNext(DType::kF32, first, DType::kF64, reinterpret_cast<std::byte*>(read.data()));
    rows.ReadNext(DType::kF32, values.size() - first, DType::kF64, reinterpret_cast<std::byte*>(read.data() + first));
    for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(read[i], values[i]) << "round " << round << " element " << i;
  }
}

TEST(ChunkedRows, PartsCanBeReadInAnyOrder) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> values(1 + random() % 50), read(values.size());
    for (float& value : values) value = static_cast<float>(random() % 1000);
    const auto bytes = Bytes(values);
    ChunkedRows rows(CutAtRandom(bytes, random), nullptr);
    const size_t first = random() % (values.size() + 1), rest = values.size() - first;
    const ChunkedRows::Position begin = rows.SkipNext(first * sizeof(float));
    const ChunkedRows::Position middle = rows.SkipNext(rest * sizeof(float));
    rows.ReadAt(middle, DType::kF32, rest, DType::kF32, reinterpret_cast<std::byte*>(read.data() + first));
    rows.ReadAt(begin, DType::kF32, first, DType::kF32, reinterpret_cast<std::byte*>(read.data()));
    EXPECT_EQ(read, values) << "round " << round;
  }
}

}  // namespace
}  // namespace switchyard
