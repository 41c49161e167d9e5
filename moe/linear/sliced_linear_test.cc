#include "moe/linear/sliced_linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "base/tensor/convert.h"

namespace switchyard {
namespace {

HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(num_rows * num_cols);
  for (float& value : values) value = normal(random);
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), dtype, matrix.buffer.data(),
                  values.size());
  return matrix;
}

std::vector<double> Values(ConstMatrixView matrix) {
  std::vector<double> values(matrix.num_rows * matrix.num_cols);
  ConvertElements(matrix.dtype, matrix.data, DType::kF64, reinterpret_cast<std::byte*>(values.data()), values.size());
  return values;
}

// The products, and for each the sum of its terms' magnitudes, which the rounding error is relative to.
struct Expected {
  std::vector<double> y, size;
};

Expected Multiply(ConstMatrixView x, ConstMatrixView weight) {
  const std::vector<double> xs = Values(x), ws = Values(weight);
  Expected expected;
  for (int64_t i = 0; i < x.num_rows; ++i) {
    for (int64_t o = 0; o < weight.num_rows; ++o) {
      double sum = 0.0, size = 0.0;
      for (int64_t k = 0; k < x.num_cols; ++k) {
        const double term = xs[i * x.num_cols + k] * ws[o * x.num_cols + k];
        sum += term;
        size += std::abs(term);
      }
      expected.y.push_back(sum);
      expected.size.push_back(size);
    }
  }
  return expected;
}

class SlicedLinears : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const HostMatrix weight = RandomMatrix(GetParam(), 1, 1, 1);
    const absl::Status status = SlicedLinear::Create(context_.get(), GetParam(), weight.view()).status();
    if (status.code() == absl::StatusCode::kUnimplemented) GTEST_SKIP() << status;
  }

  std::unique_ptr<LinearContext> context_ = LinearContext::Create(2).value();
  SlicedLinear::Scratch scratch_{context_.get()};
};

TEST_P(SlicedLinears, MatchTheDefinitionForEveryShapeAndNumberOfRows) {
  for (const auto& [k, n] : {std::tuple{1, 1},
                             {2, 3},
                             {64, 8},
                             {40, 16},
                             {321, 1},
                             {95, 5},
                             {70, 7},
                             {33, 32},
                             {66, 47},
                             {128, 60},
                             {250, 130}}) {
    const HostMatrix weight = RandomMatrix(DType::kBF16, n, k, 1);
    const auto linear = SlicedLinear::Create(context_.get(), GetParam(), weight.view()).value();
    for (const int64_t m : {0, 1, 2, 3, 5, 7, 8, 9, 11, 15, 16, 17, 31, 32, 100, 128, 255, 256, 300, 531}) {
      const HostMatrix x = RandomMatrix(GetParam(), m, k, 2);
      std::vector<float> y(m * n + 1, -7.0f);
      ASSERT_TRUE(linear->Run(x.view(), 0, linear->num_slices(), y.data(), &scratch_).ok());
      const Expected expected = Multiply(x.view(), weight.view());
      for (int64_t i = 0; i < m * n; ++i) {
        ASSERT_NEAR(y[i], expected.y[i], 1e-6 * expected.size[i]) << m << "x" << k << "x" << n << ", element " << i;
      }
      EXPECT_EQ(y.back(), -7.0f);
    }
  }
}

TEST_P(SlicedLinears, ASliceWritesItsOwnColumnsOnly) {
  constexpr int64_t kN = 150;
  const HostMatrix weight = RandomMatrix(GetParam(), kN, 24, 1);
  const auto linear = SlicedLinear::Create(context_.get(), GetParam(), weight.view()).value();
  ASSERT_EQ(linear->num_slices(), 3);
  for (const int64_t m : {3, 20}) {
    const HostMatrix x = RandomMatrix(GetParam(), m, 24, 2);
    std::vector<float> whole(m * kN), part(m * kN, -7.0f);
    ASSERT_TRUE(linear->Run(x.view(), 0, 3, whole.data(), &scratch_).ok());
    ASSERT_TRUE(linear->Run(x.view(), 1, 1, part.data(), &scratch_).ok());
    for (int64_t i = 0; i < m * kN; ++i) {
      EXPECT_EQ(part[i], i % kN >= 64 && i % kN < 128 ? whole[i] : -7.0f);
    }
  }
}

TEST_P(SlicedLinears, NanStaysInItsRow) {
  const HostMatrix weight = RandomMatrix(DType::kF32, 40, 20, 1);
  const auto linear = SlicedLinear::Create(context_.get(), GetParam(), weight.view()).value();
  for (const int64_t m : {3, 19}) {
    std::vector<float> values(m * 20, 0.5f);
    values[20 + 4] = NAN;
    HostMatrix x = HostMatrix::Allocate(GetParam(), m, 20);
    ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), GetParam(), x.buffer.data(),
                    values.size());
    std::vector<float> y(m * 40);
    ASSERT_TRUE(linear->Run(x.view(), 0, linear->num_slices(), y.data(), &scratch_).ok());
    for (int64_t i = 0; i < m * 40; ++i) EXPECT_EQ(std::isnan(y[i]), i / 40 == 1) << i;
  }
}

TEST_P(SlicedLinears, ThreadsShareALinear) {
  constexpr int64_t kM = 43, kN = 192;
  const HostMatrix weight = RandomMatrix(GetParam(), kN, 64, 1), x = RandomMatrix(GetParam(), kM, 64, 2);
  const auto linear = SlicedLinear::Create(context_.get(), GetParam(), weight.view()).value();
  std::vector<float> alone(kM * kN);
  ASSERT_TRUE(linear->Run(x.view(), 0, 3, alone.data(), &scratch_).ok());
  std::vector<std::vector<float>> shared(4, std::vector<float>(kM * kN));
  std::vector<std::thread> threads;
  for (auto& y : shared) {
    threads.emplace_back([&] {
      SlicedLinear::Scratch scratch(context_.get());
      for (int i = 0; i < 200; ++i) EXPECT_TRUE(linear->Run(x.view(), 0, 3, y.data(), &scratch).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& y : shared) EXPECT_EQ(y, alone);
}

TEST_P(SlicedLinears, PackLargeWeightsOnce) {
  const HostMatrix weight = RandomMatrix(GetParam(), 128, 2048, 1);
  const auto linear = SlicedLinear::Create(context_.get(), GetParam(), weight.view()).value();
  EXPECT_LE(linear->packed_bytes(), 1.05 * weight.view().size_bytes());
}

INSTANTIATE_TEST_SUITE_P(All, SlicedLinears, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace switchyard
