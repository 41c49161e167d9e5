#include "base/tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/tensor/buffer.h"
#include "base/tensor/convert.h"
#include "base/tensor/float16.h"

namespace switchyard {
namespace {

TEST(DType, NamesRoundTripAndUnknownNamesAreListed) {
  for (DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(*ParseDType(DTypeName(dtype)), dtype);
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ParseDType("int8").status()));
}

TEST(MatrixView, RowsAreOffsetByWholeRows) {
  HostMatrix matrix = HostMatrix::Allocate(DType::kBF16, 4, 3);
  EXPECT_EQ(matrix.view().size_bytes(), 24u);
  EXPECT_EQ(matrix.view().Rows(1, 2).data, matrix.buffer.data() + 6);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix.buffer.data()) % 64, 0u);
}

TEST(HostBuffer, GrowsAndNeverShrinks) {
  HostBuffer buffer(8);
  buffer.EnsureSize(100);
  EXPECT_EQ(buffer.size(), 100u);
  buffer.EnsureSize(10);
  EXPECT_EQ(buffer.size(), 100u);
}

TEST(HostBufferDeathTest, SaysWhatItCouldNotAllocate) {
  const size_t too_many = std::numeric_limits<size_t>::max() / 2;
  // AddressSanitizer refuses such a size itself.
  EXPECT_DEATH(HostBuffer buffer(too_many),
               "out of memory: cannot allocate a buffer of|exceeds maximum supported size");
}

// Every 16-bit pattern survives the trip through fp32 (NaN payloads may be quietened).
TEST(Float16, EveryPatternRoundTrips) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (std::isnan(F16ToF32(half))) {
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(F16ToF32(half)))));
    } else {
      ASSERT_EQ(F32ToF16(F16ToF32(half)), half) << bits;
    }
    if (std::isnan(BF16ToF32(half))) {
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(BF16ToF32(half)))));
    } else {
      ASSERT_EQ(F32ToBF16(BF16ToF32(half)), half) << bits;
    }
  }
}

// Compares with the compiler's own _Float16, over values that round, overflow and underflow.
TEST(Float16, RoundsToNearestEven) {
  uint32_t state = 1;
  for (int i = 0; i < 2'000'000; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = std::bit_cast<float>(state);
    if (std::isnan(value)) continue;
    ASSERT_EQ(F32ToF16(value), std::bit_cast<uint16_t>(static_cast<_Float16>(value))) << value;
  }
  EXPECT_EQ(F32ToBF16(1.00390625f), 0x3f80);  // halfway between 1 and 1.0078125, so it rounds to even
  EXPECT_EQ(F32ToBF16(1.01171875f), 0x3f82);
  EXPECT_EQ(F32ToBF16(std::numeric_limits<float>::max()), 0x7f80);
}

TEST(ConvertElements, EveryPairOfTypesKeepsSmallIntegersAndNaN) {
  const std::vector<double> values = {0, -1, 2.5, 96, std::numeric_limits<double>::quiet_NaN()};
  const std::vector<DType> dtypes = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16};
  for (DType from : dtypes) {
    std::vector<std::byte> in(values.size() * SizeOf(from) + 1);
    // One byte off alignment, as a tensor inside a received message may be.
    ConvertElements(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), from, in.data(), values.size());
    std::memmove(in.data() + 1, in.data(), in.size() - 1);
    for (DType to : dtypes) {
      std::vector<double> mid(values.size()), out(values.size());
      ConvertElements(from, in.data() + 1, to, reinterpret_cast<std::byte*>(mid.data()), values.size());
      ConvertElements(to, reinterpret_cast<std::byte*>(mid.data()), DType::kF64,
                      reinterpret_cast<std::byte*>(out.data()), values.size());
      for (size_t i = 0; i + 1 < values.size(); ++i) EXPECT_EQ(out[i], values[i]) << DTypeName(from) << DTypeName(to);
      EXPECT_TRUE(std::isnan(out.back()));
    }
  }
}

}  // namespace
}  // namespace switchyard
