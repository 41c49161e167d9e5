#include "moe/weights/storage/quantized.h"

#include <array>
#include <bit>
#include <limits>

#include "base/tensor/float16.h"

namespace switchyard {
namespace {

// The two values of every byte of e2m1 codes, the low nibble's first. Both are wanted at once, so one lookup of a pair
// replaces two.
using Pair = std::array<float, 2>;

std::array<Pair, 256> MakePairs() {
  std::array<Pair, 256> pairs;
  for (int byte = 0; byte < 256; ++byte) pairs[byte] = {Mxfp4Value(byte & 15), Mxfp4Value(byte >> 4)};
  return pairs;
}

// The same bits as Fp8Value, but without a branch, so that the loop becomes vector code. The code's exponent and
// mantissa are put where fp32 has them, which gives a number 2^120 times too small; the product corrects that and makes
// subnormals exact too.
inline float Fp8ValueOf(uint32_t code) {
  const uint32_t sign = (code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : std::bit_cast<uint32_t>(value);
  return std::bit_cast<float>(sign | bits);
}

}  // namespace

float Fp8Value(uint8_t code) { return Fp8ValueOf(code); }

float Mxfp4Value(uint8_t nibble) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float magnitude = kMagnitudes[nibble & 7];
  return (nibble & 8) != 0 ? -magnitude : magnitude;
}

float Mxfp4Scale(uint8_t exponent) {
  if (exponent == 255) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return 0x1p-127f;  // below the normal numbers
  return std::bit_cast<float>(static_cast<uint32_t>(exponent) << 23);
}

void WidenFp8(const uint8_t* codes, float scale, uint16_t* bf16, size_t num_values) {
  for (size_t i = 0; i < num_values; ++i) bf16[i] = F32ToBF16(Fp8ValueOf(codes[i]) * scale);
}

void WidenMxfp4(const uint8_t* codes, const uint8_t* scales, uint16_t* bf16, size_t num_groups) {
  static const std::array<Pair, 256> kPairs = MakePairs();
  for (size_t group = 0; group < num_groups; ++group) {
    const float scale = Mxfp4Scale(scales[group]);
    float values[kMxfp4Group];
    for (int64_t i = 0; i < kMxfp4GroupBytes; ++i) {
      const Pair& pair = kPairs[codes[group * kMxfp4GroupBytes + i]];
      values[2 * i] = pair[0];
      values[2 * i + 1] = pair[1];
    }
    for (int64_t i = 0; i < kMxfp4Group; ++i) bf16[group * kMxfp4Group + i] = F32ToBF16(values[i] * scale);
  }
}

}  // namespace switchyard
