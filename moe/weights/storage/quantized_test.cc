// Checks every code of both quantised types against a decoder that follows the formats' definition digit by digit.
#include "moe/weights/storage/quantized.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/tensor/float16.h"

namespace switchyard {
namespace {

// sign · 2^(e - 7) · 1.mmm, or sign · 2^-6 · 0.mmm when e is 0.
double Fp8ByDefinition(int code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa / 8.0, -6) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return code & 128 ? -magnitude : magnitude;
}

// sign · 2^(e - 1) · 1.m, or sign · 0.m when e is 0.
double Mxfp4ByDefinition(int nibble) {
  const int exponent = (nibble >> 1) & 3, mantissa = nibble & 1;
  const double magnitude = exponent == 0 ? mantissa / 2.0 : std::ldexp(1 + mantissa / 2.0, exponent - 1);
  return nibble & 8 ? -magnitude : magnitude;
}

void ExpectSame(double value, double expected) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(value));
  } else {
    EXPECT_EQ(value, expected);
    EXPECT_EQ(std::signbit(value), std::signbit(expected));
  }
}

TEST(Fp8, EveryCodeIsItsDefinition) {
  EXPECT_EQ(Fp8Value(0x7e), 448);
  EXPECT_EQ(Fp8Value(0x01), std::ldexp(1.0, -9));
  for (int code = 0; code < 256; ++code) {
    SCOPED_TRACE(code);
    ExpectSame(Fp8Value(code), Fp8ByDefinition(code));
  }
}

TEST(Fp8, EveryCodeTimesAScale) {
  std::vector<uint8_t> codes(256);
  for (int code = 0; code < 256; ++code) codes[code] = code;
  std::vector<uint16_t> bf16(256);
  for (float scale : {1.0f, 0.00037f, -3.0f, 1e30f}) {
    WidenFp8(codes.data(), scale, bf16.data(), codes.size());
    for (int code = 0; code < 256; ++code) {
      SCOPED_TRACE(code);
      // The code has four significant bits, so the product with a float is exact in double. WidenFp8 promises to round
      // it to fp32 first.
      ExpectSame(BF16ToF32(bf16[code]), BF16ToF32(F32ToBF16(static_cast<float>(Fp8ByDefinition(code) * scale))));
    }
  }
}

TEST(Mxfp4, EveryCodeIsItsDefinition) {
  for (int nibble = 0; nibble < 16; ++nibble) {
    SCOPED_TRACE(nibble);
    ExpectSame(Mxfp4Value(nibble), Mxfp4ByDefinition(nibble));
  }
}

TEST(Mxfp4, EveryByteWithEveryScaleLowNibbleFirst) {
  for (int exponent = 0; exponent < 256; ++exponent) {
    // All 256 bytes are 16 groups.
    std::vector<uint8_t> codes(256), scales(16, exponent);
    for (int byte = 0; byte < 256; ++byte) codes[byte] = byte;
    std::vector<uint16_t> bf16(512);
    WidenMxfp4(codes.data(), scales.data(), bf16.data(), scales.size());
    const double scale = exponent == 255 ? NAN : std::ldexp(1.0, exponent - 127);
    for (int i = 0; i < 512; ++i) {
      SCOPED_TRACE(absl::StrCat(exponent, " ", i));
      const int nibble = i % 2 == 0 ? codes[i / 2] & 15 : codes[i / 2] >> 4;
      ExpectSame(BF16ToF32(bf16[i]), static_cast<float>(Mxfp4ByDefinition(nibble) * scale));
    }
  }
}

}  // namespace
}  // namespace switchyard
