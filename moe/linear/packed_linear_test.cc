#include "moe/linear/packed_linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "base/tensor/convert.h"
#include "moe/linear/row_chunks.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

// Values that every dtype holds exactly: multiples of 1/64 within ±1, so that only the GEMM itself rounds.
HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<double> values(num_rows * num_cols);
  for (double& value : values) value = (static_cast<int>(random() % 129) - 64) / 64.0;
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  ConvertElements(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), dtype, matrix.buffer.data(),
                  values.size());
  return matrix;
}

std::vector<double> Values(ConstMatrixView matrix) {
  std::vector<double> values(matrix.num_rows * matrix.num_cols);
  ConvertElements(matrix.dtype, matrix.data, DType::kF64, reinterpret_cast<std::byte*>(values.data()), values.size());
  return values;
}

double Activate(std::optional<Activation> activation, double x) {
  if (!activation.has_value()) return x;
  if (*activation == Activation::kSilu) return x / (1.0 + std::exp(-x));
  if (*activation == Activation::kRelu) return std::max(x, 0.0);
  if (*activation == Activation::kQuickGelu) return x / (1.0 + std::exp(-1.702 * x));
  // √(2/π) = 0.79788456080286536
  if (*activation == Activation::kGeluTanh) {
    return 0.5 * x * (1.0 + std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
  }
  return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
}

struct Case {
  DType compute = DType::kF32;
  DType stored = DType::kF32;
  bool transposed = false;
  bool biased = false;
  LinearEpilogue epilogue;
  DType y_dtype = DType::kF32;
  double tolerance = 0.0;  // allowed error, relative to 1 + |value|
};

std::unique_ptr<LinearContext> NewContext(int num_threads = 2) { return LinearContext::Create(num_threads).value(); }

// Runs `c` on random data and compares with the definition in fp64.
void ExpectRight(LinearContext* context, const Case& c, int64_t m, int64_t k, int64_t n) {
  const HostMatrix x = RandomMatrix(c.compute, m, k, 1);
  const HostMatrix weight = c.transposed ? RandomMatrix(c.stored, k, n, 2) : RandomMatrix(c.stored, n, k, 2);
  const HostMatrix bias = RandomMatrix(c.stored, 1, n, 3);
  const auto linear = PackedLinear::Create(context, c.compute, {weight.view(), c.transposed},
                                           c.biased ? bias.view() : ConstMatrixView{});
  ASSERT_TRUE(linear.ok()) << linear.status();
  HostMatrix y = HostMatrix::Allocate(c.y_dtype, m, n);
  ASSERT_TRUE((*linear)->Run(x.view(), c.epilogue, y.view()).ok());

  const std::vector<double> xs = Values(x.view()), ws = Values(weight.view()), bs = Values(bias.view());
  const std::vector<double> multiplier =
      c.epilogue.multiplier.data != nullptr ? Values(c.epilogue.multiplier) : std::vector<double>(m * n, 1.0);
  const std::vector<double> ys = Values(y.view());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t o = 0; o < n; ++o) {
      double expected = c.biased ? bs[o] : 0.0;
      for (int64_t j = 0; j < k; ++j) expected += xs[i * k + j] * (c.transposed ? ws[j * n + o] : ws[o * k + j]);
      expected = Activate(c.epilogue.activation, expected) * multiplier[i * n + o];
      ASSERT_NEAR(ys[i * n + o], expected, c.tolerance * (1.0 + std::abs(expected))) << "row " << i << " column " << o;
    }
  }
}

double Tolerance(DType y_dtype) {
  if (y_dtype == DType::kF64) return 1e-12;
  return y_dtype == DType::kF32 ? 1e-5 : 1e-2;
}

class ComputeTypes : public testing::TestWithParam<DType> {};

TEST_P(ComputeTypes, EveryEpilogueMatchesItsDefinition) {
  const auto context = NewContext();
  constexpr int64_t kM = 13, kK = 33, kN = 57;
  const HostMatrix multiplier = RandomMatrix(GetParam() == DType::kF64 ? DType::kF64 : DType::kF32, kM, kN, 4);
  for (const std::optional<Activation> activation :
       {std::optional<Activation>(), std::optional(Activation::kSilu), std::optional(Activation::kGelu),
        std::optional(Activation::kRelu), std::optional(Activation::kGeluTanh),
        std::optional(Activation::kQuickGelu)}) {
    for (const bool biased : {false, true}) {
      for (const bool multiplied : {false, true}) {
        Case c{.compute = GetParam(), .stored = GetParam(), .biased = biased, .y_dtype = GetParam()};
        c.epilogue = {activation, multiplied ? multiplier.view() : ConstMatrixView{}};
        c.tolerance = Tolerance(c.y_dtype);
        ExpectRight(context.get(), c, kM, kK, kN);
      }
    }
  }
}

TEST_P(ComputeTypes, WeightsOfEveryTypeAndOrientation) {
  const auto context = NewContext();
  for (const DType stored : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool transposed : {false, true}) {
      Case c{.compute = GetParam(), .stored = stored, .transposed = transposed, .biased = true, .y_dtype = GetParam()};
      c.tolerance = Tolerance(c.y_dtype);
      ExpectRight(context.get(), c, 5, 40, 72);
    }
  }
}

TEST_P(ComputeTypes, EveryNumberOfRows) {
  const auto context = NewContext();
  for (const int64_t m : {1, 2, 7, 16, 127, 128, 129, 255, 256, 257, 300, 383, 384, 700}) {
    Case c{.compute = GetParam(), .stored = GetParam(), .y_dtype = GetParam(), .tolerance = Tolerance(GetParam())};
    ExpectRight(context.get(), c, m, 24, 17);
  }
}

TEST_P(ComputeTypes, ShapesDownToOneByOne) {
  const auto context = NewContext();
  for (const auto& [k, n] : {std::tuple{1, 1}, {1, 64}, {65, 1}, {2, 3}, {128, 130}}) {
    Case c{.compute = GetParam(), .stored = GetParam(), .biased = true, .y_dtype = GetParam()};
    c.tolerance = Tolerance(c.y_dtype);
    ExpectRight(context.get(), c, 3, k, n);
  }
}

TEST_P(ComputeTypes, NoRowsAreNoWork) {
  const auto context = NewContext();
  const HostMatrix weight = RandomMatrix(DType::kF32, 4, 3, 1);
  const auto linear = PackedLinear::Create(context.get(), GetParam(), {weight.view()}, {}).value();
  EXPECT_TRUE(linear->Run({nullptr, GetParam(), 0, 3}, {}, {nullptr, GetParam(), 0, 4}).ok());
}

TEST_P(ComputeTypes, ARowDoesNotDependOnItsBatchBeyondRounding) {
  const auto context = NewContext();
  const HostMatrix x = RandomMatrix(GetParam(), 300, 96, 1);
  const HostMatrix weight = RandomMatrix(GetParam(), 80, 96, 2);
  const auto linear = PackedLinear::Create(context.get(), GetParam(), {weight.view()}, {}).value();
  HostMatrix together = HostMatrix::Allocate(GetParam(), 300, 80), alone = HostMatrix::Allocate(GetParam(), 1, 80);
  ASSERT_TRUE(linear->Run(x.view(), {}, together.view()).ok());
  for (const int64_t row_idx : {0, 77, 299}) {
    ASSERT_TRUE(linear->Run(x.view().Rows(row_idx, 1), {}, alone.view()).ok());
    const std::vector<double> one = Values(alone.view()), many = Values(together.view().Rows(row_idx, 1));
    for (int i = 0; i < 80; ++i) EXPECT_NEAR(one[i], many[i], Tolerance(GetParam()) * (1 + std::abs(one[i])));
  }
}

TEST_P(ComputeTypes, NanStaysInItsRow) {
  const auto context = NewContext();
  const HostMatrix ones = RandomMatrix(DType::kF32, 20, 20, 1);
  const auto linear = PackedLinear::Create(context.get(), GetParam(), {ones.view()}, {}).value();
  std::vector<double> values(3 * 20, 0.5);
  values[20 + 4] = std::numeric_limits<double>::quiet_NaN();
  HostMatrix x = HostMatrix::Allocate(GetParam(), 3, 20), y = HostMatrix::Allocate(GetParam(), 3, 20);
  ConvertElements(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), GetParam(), x.buffer.data(), 60);
  for (const Activation activation : {Activation::kSilu, Activation::kGelu}) {
    ASSERT_TRUE(linear->Run(x.view(), {.activation = activation}, y.view()).ok());
    const std::vector<double> ys = Values(y.view());
    for (int i = 0; i < 60; ++i) EXPECT_EQ(std::isnan(ys[i]), i / 20 == 1) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ComputeTypes, testing::Values(DType::kF64, DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST(PackedLinear, Bf16MixesWithFp32Outputs) {
  const auto context = NewContext();
  const HostMatrix bf16 = RandomMatrix(DType::kBF16, 9, 48, 4);
  const HostMatrix fp32 = RandomMatrix(DType::kF32, 9, 48, 4);
  for (const DType y_dtype : {DType::kF32, DType::kBF16}) {
    for (const ConstMatrixView multiplier : {ConstMatrixView(bf16.view()), ConstMatrixView(fp32.view())}) {
      Case c{.compute = DType::kBF16, .stored = DType::kBF16, .y_dtype = y_dtype, .tolerance = Tolerance(y_dtype)};
      c.epilogue = {Activation::kSilu, multiplier};
      ExpectRight(context.get(), c, 9, 64, 48);
    }
  }
}

TEST(PackedLinear, PacksLargeWeightsWithoutPadding) {
  const auto context = NewContext();
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    const HostMatrix weight = RandomMatrix(dtype, 768, 2048, 1);
    const auto linear = PackedLinear::Create(context.get(), dtype, {weight.view()}, {}).value();
    EXPECT_LE(linear->packed_bytes(), 1.05 * weight.view().size_bytes());
  }
}

TEST(PackedLinear, AcceptsWeightsAtAnyAddress) {
  const auto context = NewContext();
  const HostMatrix weight = RandomMatrix(DType::kBF16, 6, 10, 1), x = RandomMatrix(DType::kBF16, 2, 10, 2);
  HostBuffer shifted(121);
  std::copy_n(weight.buffer.data(), 120, shifted.data() + 1);
  HostMatrix y = HostMatrix::Allocate(DType::kF32, 2, 6), expected = HostMatrix::Allocate(DType::kF32, 2, 6);
  const ConstMatrixView unaligned{shifted.data() + 1, DType::kBF16, 6, 10};
  const auto a = PackedLinear::Create(context.get(), DType::kBF16, {unaligned}, {}).value();
  const auto b = PackedLinear::Create(context.get(), DType::kBF16, {weight.view()}, {}).value();
  ASSERT_TRUE(a->Run(x.view(), {}, y.view()).ok());
  ASSERT_TRUE(b->Run(x.view(), {}, expected.view()).ok());
  EXPECT_EQ(Values(y.view()), Values(expected.view()));
}

TEST(PackedLinear, LinearsOfOneContextKeepTheirOwnWeights) {
  const auto context = NewContext();
  const HostMatrix x = RandomMatrix(DType::kF32, 4, 8, 1);
  const HostMatrix first = RandomMatrix(DType::kF32, 8, 8, 2), second = RandomMatrix(DType::kF32, 8, 8, 3);
  const auto a = PackedLinear::Create(context.get(), DType::kF32, {first.view()}, {}).value();
  const auto b = PackedLinear::Create(context.get(), DType::kF32, {second.view()}, {}).value();
  HostMatrix ya = HostMatrix::Allocate(DType::kF32, 4, 8), yb = HostMatrix::Allocate(DType::kF32, 4, 8);
  HostMatrix again = HostMatrix::Allocate(DType::kF32, 4, 8);
  ASSERT_TRUE(a->Run(x.view(), {}, ya.view()).ok());
  ASSERT_TRUE(b->Run(x.view(), {}, yb.view()).ok());
  ASSERT_TRUE(a->Run(x.view(), {}, again.view()).ok());
  EXPECT_EQ(Values(ya.view()), Values(again.view()));
  EXPECT_NE(Values(ya.view()), Values(yb.view()));
}

TEST(PackedLinear, PreparedKernelsGiveTheSameResult) {
  const auto context = NewContext(), other = NewContext();
  const HostMatrix weight = RandomMatrix(DType::kF32, 12, 20, 1), x = RandomMatrix(DType::kF32, 11, 20, 2);
  const auto prepared = PackedLinear::Create(context.get(), DType::kF32, {weight.view()}, {}).value();
  const auto plain = PackedLinear::Create(other.get(), DType::kF32, {weight.view()}, {}).value();
  ASSERT_TRUE(prepared->Prepare({.activation = Activation::kSilu}, DType::kF32).ok());
  HostMatrix a = HostMatrix::Allocate(DType::kF32, 11, 12), b = HostMatrix::Allocate(DType::kF32, 11, 12);
  ASSERT_TRUE(prepared->Run(x.view(), {.activation = Activation::kSilu}, a.view()).ok());
  ASSERT_TRUE(plain->Run(x.view(), {.activation = Activation::kSilu}, b.view()).ok());
  EXPECT_EQ(Values(a.view()), Values(b.view()));
}

TEST(PackedLinear, RefusesWhatDoesNotFit) {
  const auto context = NewContext();
  const HostMatrix weight = RandomMatrix(DType::kF32, 4, 3, 1);
  const HostMatrix bias = RandomMatrix(DType::kF32, 1, 3, 1);
  const auto create = [&](DType compute, ConstMatrixView b) {
    return PackedLinear::Create(context.get(), compute, {weight.view()}, b).status();
  };
  EXPECT_EQ(create(DType::kF16, {}).code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(create(DType::kF16, {}).message()), HasSubstr("fp64, fp32 or bf16"));
  EXPECT_THAT(std::string(create(DType::kF32, bias.view()).message()), HasSubstr("expected [1, 4]"));
  EXPECT_EQ(PackedLinear::Create(context.get(), DType::kF32, {}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(LinearContext::Create(-1).status().code(), absl::StatusCode::kInvalidArgument);

  const auto linear = PackedLinear::Create(context.get(), DType::kF32, {weight.view()}, {}).value();
  HostMatrix x = HostMatrix::Allocate(DType::kF32, 2, 3), y = HostMatrix::Allocate(DType::kF32, 2, 4);
  HostMatrix wide = HostMatrix::Allocate(DType::kF32, 2, 5), bf16 = HostMatrix::Allocate(DType::kBF16, 2, 3);
  const auto message = [&](ConstMatrixView in, LinearEpilogue epilogue, MatrixView out) {
    const absl::Status status = linear->Run(in, epilogue, out);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(wide.view(), {}, y.view()), HasSubstr("x is fp32 [2, 5], expected fp32 [2, 3]"));
  EXPECT_THAT(message(bf16.view(), {}, y.view()), HasSubstr("x is bf16 [2, 3], expected fp32 [2, 3]"));
  EXPECT_THAT(message(x.view(), {}, wide.view()), HasSubstr("y is fp32 [2, 5], expected fp32 [2, 4]"));
  EXPECT_THAT(message(x.view(), {.multiplier = x.view()}, y.view()), HasSubstr("multiplier is fp32 [2, 3]"));
}

TEST(NextChunkRows, CoversEveryCountWithFewDistinctSizes) {
  for (int64_t total = 1; total <= 3000; ++total) {
    int64_t left = total;
    while (left > 0) {
      const int64_t count = NextChunkRows(left);
      ASSERT_GE(count, 1);
      ASSERT_LE(count, left);
      ASSERT_TRUE(count <= kMaxExactRows || count == kFullChunkRows) << total;
      ASSERT_GE(count, std::min(total, kMaxExactRows / 2)) << total;
      left -= count;
    }
  }
}

}  // namespace
}  // namespace switchyard
