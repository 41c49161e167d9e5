#include "moe/experts/cpu/row_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "base/tensor/float16.h"

namespace switchyard {
namespace {

template <typename T>
T FromDouble(double value) {
  if constexpr (std::is_same_v<T, BF16>) {
    return {F32ToBF16(static_cast<float>(value))};
  } else {
    return static_cast<T>(value);
  }
}

template <typename T>
double ToDouble(T value) {
  if constexpr (std::is_same_v<T, BF16>) {
    return BF16ToF32(value.bits);
  } else {
    return value;
  }
}

template <typename T>
class RowKernelsTest : public testing::Test {
 protected:
  using Sum = SumOf<T>;
  static constexpr double kUnit = std::is_same_v<T, BF16> ? 0x1p-8 : std::is_same_v<T, float> ? 0x1p-22 : 0x1p-51;

  template <typename V>
  std::vector<V> Random(int64_t n) {
    std::vector<V> values(n);
    for (V& value : values) value = FromDouble<V>(normal_(random_));
    return values;
  }

  const RowKernels<T> kernels_ = FastestRowKernels<T>();
  std::mt19937 random_{42};
  std::normal_distribution<double> normal_;
};

using Types = testing::Types<float, double, BF16>;
TYPED_TEST_SUITE(RowKernelsTest, Types);

constexpr int64_t kWidths[] = {0, 1, 3, 15, 16, 17, 33, 64, 511, 512, 513, 2048};

TYPED_TEST(RowKernelsTest, FinishMultipliesAddsAndRounds) {
  using Sum = SumOf<TypeParam>;
  for (const int64_t n : kWidths) {
    const auto y = this->template Random<Sum>(n), base = this->template Random<Sum>(n);
    std::vector<TypeParam> with(n), without(n);
    this->kernels_.finish(Sum(0.75), y.data(), base.data(), with.data(), n);
    this->kernels_.finish(Sum(0.75), y.data(), nullptr, without.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(ToDouble(with[i]), 0.75 * y[i] + base[i], this->kUnit * (std::abs(0.75 * y[i]) + std::abs(base[i])));
      EXPECT_NEAR(ToDouble(without[i]), 0.75 * y[i], this->kUnit * std::abs(y[i]));
    }
  }
}

TYPED_TEST(RowKernelsTest, AccumulateWorksInPlaceAndKeepsToItsColumns) {
  using Sum = SumOf<TypeParam>;
  for (const int64_t n : kWidths) {
    const auto y = this->template Random<Sum>(n);
    auto sums = this->template Random<Sum>(n + 1);
    const auto before = sums;
    this->kernels_.accumulate(Sum(2), y.data(), sums.data(), sums.data(), n);
    for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(sums[i], 2.0 * y[i] + before[i], 1e-6);
    EXPECT_EQ(sums[n], before[n]);
  }
}

TYPED_TEST(RowKernelsTest, AddRowsSumsAllSources) {
  for (const int64_t n : kWidths) {
    for (const int num_sources : {1, 2, 5}) {
      std::vector<std::vector<TypeParam>> rows;
      std::vector<const TypeParam*> sources;
      for (int s = 0; s < num_sources; ++s) rows.push_back(this->template Random<TypeParam>(n));
      for (const auto& row : rows) sources.push_back(row.data());
      std::vector<TypeParam> out(n);
      this->kernels_.add_rows(sources.data(), num_sources, out.data(), n);
      for (int64_t i = 0; i < n; ++i) {
        double expected = 0, size = 0;
        for (const auto& row : rows) expected += ToDouble(row[i]), size += std::abs(ToDouble(row[i]));
        EXPECT_NEAR(ToDouble(out[i]), expected, this->kUnit * size * num_sources);
      }
    }
  }
}

TYPED_TEST(RowKernelsTest, ScaleMultipliesAndRounds) {
  for (const int64_t n : kWidths) {
    const auto row = this->template Random<TypeParam>(n);
    std::vector<TypeParam> out(n);
    this->kernels_.scale(SumOf<TypeParam>(0.3), row.data(), out.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      const double expected = SumOf<TypeParam>(0.3) * ToDouble(row[i]);
      EXPECT_NEAR(ToDouble(out[i]), expected, this->kUnit * std::abs(expected));
    }
  }
}

TYPED_TEST(RowKernelsTest, ClampedSwishMatchesItsFormula) {
  using Sum = SumOf<TypeParam>;
  for (const ClampedSwish formula : {ClampedSwish{.scale = 1.702, .limit = 1.5, .up_offset = 1}, ClampedSwish{}}) {
    for (const int64_t n : kWidths) {
      auto gate = this->template Random<Sum>(n), up = this->template Random<Sum>(n);
      for (Sum& value : gate) value *= 30;  // far into the sigmoid's saturated ends
      std::vector<TypeParam> out(n);
      this->kernels_.clamped_swish(formula, gate.data(), up.data(), out.data(), n);
      for (int64_t i = 0; i < n; ++i) {
        const double g = std::min<double>(gate[i], formula.limit);
        const double u = std::clamp<double>(up[i], -formula.limit, formula.limit) + formula.up_offset;
        // The relative error of e^x is the absolute error of x, so the tolerance grows with the size of the argument.
        const double unit = this->kUnit * (4 + std::abs(g));
        EXPECT_NEAR(ToDouble(out[i]), g / (1 + std::exp(-formula.scale * g)) * u,
                    unit * std::abs(g / (1 + std::exp(-formula.scale * g))) * (std::abs(up[i]) + 1) + 1e-30)
            << gate[i] << " " << up[i];
      }
    }
  }
}

TYPED_TEST(RowKernelsTest, BoundsLeaveNanAndBindInfinity) {
  using Sum = SumOf<TypeParam>;
  const ClampedSwish formula{.scale = 1.702, .limit = 7, .up_offset = 1};
  const std::vector<Sum> gate{Sum(NAN), Sum(7), Sum(INFINITY), Sum(-200)}, up{Sum(1), Sum(NAN), Sum(-INFINITY), Sum(2)};
  std::vector<TypeParam> out(4);
  this->kernels_.clamped_swish(formula, gate.data(), up.data(), out.data(), 4);
  EXPECT_TRUE(std::isnan(ToDouble(out[0])));
  EXPECT_TRUE(std::isnan(ToDouble(out[1])));
  EXPECT_NEAR(ToDouble(out[2]), 7 / (1 + std::exp(-1.702 * 7)) * -6, 42 * this->kUnit);
  EXPECT_NEAR(ToDouble(out[3]), 0, 1e-30);
}

TYPED_TEST(RowKernelsTest, NanAndInfinityPass) {
  using Sum = SumOf<TypeParam>;
  const std::vector<Sum> y{Sum(NAN), Sum(INFINITY), Sum(-INFINITY), Sum(1)};
  std::vector<TypeParam> out(4);
  this->kernels_.finish(Sum(1), y.data(), nullptr, out.data(), 4);
  EXPECT_TRUE(std::isnan(ToDouble(out[0])));
  EXPECT_EQ(ToDouble(out[1]), INFINITY);
  EXPECT_EQ(ToDouble(out[2]), -INFINITY);
  EXPECT_EQ(ToDouble(out[3]), 1);
}

}  // namespace
}  // namespace switchyard
