// Quantised weights as files hold them, widened to bf16. Pure loops over bytes; the caller has checked sizes.
//
// fp8 (e4m3, "FN" form): 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, 0x7f and 0xff are NaN. One scale
// per block of the matrix multiplies its values.
// MXFP4 (OCP Microscaling, as gpt-oss stores it): 32 values of a row share a byte, the exponent e of their scale
// 2^(e - 127) (255: NaN); values are e2m1, two to a byte, the even one in the low nibble:
//   0 0.5 1 1.5 2 3 4 6, and with the high bit of the nibble their negatives.
#pragma once

#include <cstddef>
#include <cstdint>

namespace switchyard {

inline constexpr int64_t kMxfp4Group = 32;                    // values per scale
inline constexpr int64_t kMxfp4GroupBytes = kMxfp4Group / 2;  // bytes of their codes

// Values of single codes.
float Fp8Value(uint8_t code);
float Mxfp4Value(uint8_t nibble);
float Mxfp4Scale(uint8_t exponent);

// Writes bf16(value(codes[i]) · scale) for `num_values` codes. The product is computed in fp32, then rounded to bf16.
void WidenFp8(const uint8_t* codes, float scale, uint16_t* bf16, size_t num_values);

// Writes `num_groups` groups of 32 values: group g has the codes codes[16 g …] and the scale scales[g]. Exact: every
// product is a bf16 number, except those of 4 and 6 with the two largest scales and of 2 and 3 with the largest, which
// become infinite.
void WidenMxfp4(const uint8_t* codes, const uint8_t* scales, uint16_t* bf16, size_t num_groups);

}  // namespace switchyard
