#include "moe/weights/synthetic_values.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/tensor/convert.h"

namespace switchyard {
namespace {

// Elements made at a time: small enough for the first-level cache, large enough to hide the loop's ends.
constexpr int64_t kBlock = 2048;
constexpr int64_t kPerWord = 4;  // 16 bits of each 64-bit hash make one element
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

// Elements [first, first + kBlock) of stream `key` as whole numbers. `first` is a multiple of kPerWord.
void FillIntegers(uint64_t key, int64_t first, int16_t* integers) {
  const uint64_t first_word = key + static_cast<uint64_t>(first / kPerWord) * kGolden;
  for (int64_t word = 0; word < kBlock / kPerWord; ++word) {
    const uint64_t bits = MixBits(first_word + static_cast<uint64_t>(word) * kGolden);
    std::memcpy(integers + word * kPerWord, &bits, sizeof(bits));
  }
}

void ScaleToFloats(const int16_t* integers, float step, float* floats) {
  for (int64_t i = 0; i < kBlock; ++i) floats[i] = (static_cast<float>(integers[i]) + 0.5f) * step;
}

}  // namespace

void FillUniform(uint64_t key, float bound, MatrixView matrix) {
  static_assert(std::endian::native == std::endian::little, "the order of a word's elements would differ");
  std::array<int16_t, kBlock> integers;
  std::array<float, kBlock> floats;
  const float step = bound / 32768.0f;
  const int64_t num_elements = matrix.num_rows * matrix.num_cols;
  for (int64_t first = 0; first < num_elements; first += kBlock) {
    FillIntegers(key, first, integers.data());
    ScaleToFloats(integers.data(), step, floats.data());
    ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(floats.data()), matrix.dtype,
                    matrix.data + first * SizeOf(matrix.dtype), std::min(kBlock, num_elements - first));
  }
}

}  // namespace switchyard
