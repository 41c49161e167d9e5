#include "moe/gating/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/tensor/convert.h"
#include "moe/gating/select_experts.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int64_t kDim = 40;
constexpr int kExperts = 16, kTopK = 4;

LayerSpec Layer(bool renormalize = true) {
  return {.name = "3",
          .hidden_dim = kDim,
          .expert_dim = 8,
          .num_experts = kExperts,
          .gate = {.top_k = kTopK, .normalization = renormalize ? Normalization::kSum : Normalization::kNone}};
}

// Multiples of 1/64, exact in every type.
HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(num_rows * num_cols);
  for (float& value : values) value = (static_cast<int>(random() % 129) - 64) / 64.0f;
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), dtype, matrix.buffer.data(),
                  values.size());
  return matrix;
}

// Logits by the definition; for these inputs every product and sum is exact in fp32, so the routing must be equal.
Routing Expected(const LayerSpec& layer, const HostMatrix& rows, const HostMatrix& router) {
  std::vector<double> x(rows.num_rows * kDim), w(kExperts * kDim);
  ConvertElements(rows.dtype, rows.buffer.data(), DType::kF64, reinterpret_cast<std::byte*>(x.data()), x.size());
  ConvertElements(router.dtype, router.buffer.data(), DType::kF64, reinterpret_cast<std::byte*>(w.data()), w.size());
  std::vector<float> logits(rows.num_rows * kExperts);
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    for (int e = 0; e < kExperts; ++e) {
      double logit = 0.0;
      for (int64_t d = 0; d < kDim; ++d) logit += x[i * kDim + d] * w[e * kDim + d];
      logits[i * kExperts + e] = static_cast<float>(logit);
    }
  }
  Routing routing;
  routing.Resize(rows.num_rows, kTopK);
  SelectExperts(layer.gate, {}, {logits.data(), rows.num_rows, kExperts, kExperts}, 0, &routing);
  return routing;
}

TEST(Gate, RoutesRowsOfEveryAcceptedTypeLikeTheDefinition) {
  for (const DType stored : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    const RouterWeights router{RandomMatrix(stored, kExperts, kDim, 1)};
    const auto gate = Gate::Create(Layer(), 0, router).value();
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      if (!gate->Accepts(dtype)) continue;
      for (const int64_t num_rows : {1, 63, 64, 65, 1025}) {
        const HostMatrix rows = RandomMatrix(dtype, num_rows, kDim, 2);
        const Routing expected = Expected(Layer(), rows, router.weight);
        Routing routing;
        routing.Resize(num_rows, kTopK);
        ASSERT_TRUE(gate->Route(rows.view(), 0, 0, &routing, nullptr).ok());
        EXPECT_EQ(routing.expert_idx, expected.expert_idx);
        EXPECT_EQ(routing.weight, expected.weight);
      }
    }
  }
}

HostMatrix NormalBf16(int64_t num_rows, int64_t num_cols, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(num_rows * num_cols);
  for (float& value : values) value = normal(random);
  HostMatrix matrix = HostMatrix::Allocate(DType::kBF16, num_rows, num_cols);
  ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), DType::kBF16, matrix.buffer.data(),
                  values.size());
  return matrix;
}

// Logits of all rows in fp64.
std::vector<double> ExactLogits(const HostMatrix& rows, const HostMatrix& router) {
  const int64_t width = rows.num_cols;
  std::vector<double> x(rows.num_rows * width), w(router.num_rows * width), logits;
  ConvertElements(rows.dtype, rows.buffer.data(), DType::kF64, reinterpret_cast<std::byte*>(x.data()), x.size());
  ConvertElements(router.dtype, router.buffer.data(), DType::kF64, reinterpret_cast<std::byte*>(w.data()), w.size());
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    for (int64_t e = 0; e < router.num_rows; ++e) {
      logits.push_back(std::inner_product(&x[i * width], &x[i * width] + width, &w[e * width], 0.0));
    }
  }
  return logits;
}

// The k best by the exact logits; empty where the last of them and the first beyond are within 1e-5.
std::set<int32_t> ExactChoice(const double* logits, int num_experts, int top_k) {
  std::vector<int32_t> order(num_experts);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (logits[order[top_k - 1]] - logits[order[top_k]] <= 1e-5) return {};
  return std::set<int32_t>(order.begin(), order.begin() + top_k);
}

// Covers every way of sharing out the work: numbers of rows from one to many, one thread and several.
TEST(Gate, Bf16ChoosesLikeFp64WhereverScoresDiffer) {
  constexpr int64_t kWidth = 512;
  constexpr int kManyExperts = 160, kChoices = 8;
  const HostMatrix router_weight = NormalBf16(kManyExperts, kWidth, 0.05f, 1), rows = NormalBf16(700, kWidth, 1.0f, 2);
  const std::vector<double> exact = ExactLogits(rows, router_weight);
  LayerSpec layer = Layer();
  layer.hidden_dim = kWidth;
  layer.num_experts = kManyExperts;
  layer.gate.top_k = kChoices;
  RouterWeights router{HostMatrix::Allocate(DType::kBF16, kManyExperts, kWidth)};
  std::copy_n(router_weight.buffer.data(), router_weight.view().size_bytes(), router.weight.buffer.data());
  for (const int num_threads : {1, 2, 3}) {
    std::shared_ptr<LinearContext> context = LinearContext::Create(num_threads).value();
    const auto gate = Gate::Create(layer, 0, router, context).value();
    if (!gate->Accepts(DType::kBF16)) GTEST_SKIP() << "no bf16 products on this CPU";
    int num_compared = 0, num_rows_routed = 0;
    for (const int64_t num_rows : {1, 2, 15, 16, 31, 40, 64, 100, 333, 700}) {
      Routing routing;
      routing.Resize(num_rows, kChoices);
      ASSERT_TRUE(gate->Route(rows.view().Rows(0, num_rows), 0, 0, &routing, nullptr).ok());
      for (int64_t i = 0; i < num_rows; ++i) {
        ++num_rows_routed;
        const std::set<int32_t> expected = ExactChoice(&exact[i * kManyExperts], kManyExperts, kChoices);
        if (expected.empty()) continue;
        const int32_t* chosen = &routing.expert_idx[i * kChoices];
        ASSERT_EQ(std::set<int32_t>(chosen, chosen + kChoices), expected) << "row " << i << " of " << num_rows;
        ++num_compared;
      }
    }
    EXPECT_GT(num_compared, 0.99 * num_rows_routed);
  }
}

TEST(Gate, AcceptsFp32AlwaysAndBf16OnlyWithABf16Router) {
  const auto fp32 = Gate::Create(Layer(), 0, {RandomMatrix(DType::kF32, kExperts, kDim, 1)}).value();
  const auto bf16 = Gate::Create(Layer(), 0, {RandomMatrix(DType::kBF16, kExperts, kDim, 1)}).value();
  EXPECT_TRUE(fp32->Accepts(DType::kF32));
  EXPECT_TRUE(bf16->Accepts(DType::kF32));
  EXPECT_FALSE(fp32->Accepts(DType::kBF16));
  for (const auto* gate : {&fp32, &bf16}) {
    EXPECT_FALSE((*gate)->Accepts(DType::kF16));
    EXPECT_FALSE((*gate)->Accepts(DType::kF64));
  }
}

TEST(Gate, FillsAPartOfARouting) {
  const RouterWeights router{RandomMatrix(DType::kF32, kExperts, kDim, 1)};
  const auto gate = Gate::Create(Layer(false), 0, router).value();
  const HostMatrix rows = RandomMatrix(DType::kF32, 10, kDim, 2);
  Routing whole, parts;
  whole.Resize(10, kTopK);
  parts.Resize(10, kTopK);
  ASSERT_TRUE(gate->Route(rows.view(), 0, 0, &whole, nullptr).ok());
  ASSERT_TRUE(gate->Route(rows.view().Rows(6, 4), 6, 0, &parts, nullptr).ok());
  ASSERT_TRUE(gate->Route(rows.view().Rows(0, 6), 0, 0, &parts, nullptr).ok());
  EXPECT_EQ(parts.expert_idx, whole.expert_idx);
  EXPECT_EQ(parts.weight, whole.weight);
  EXPECT_TRUE(gate->Route(rows.view().Rows(0, 0), 10, 0, &parts, nullptr).ok());
}

TEST(Gate, ANanRowDoesNotTouchOthers) {
  const auto gate = Gate::Create(Layer(), 0, {RandomMatrix(DType::kF32, kExperts, kDim, 1)}).value();
  HostMatrix rows = RandomMatrix(DType::kF32, 3, kDim, 2);
  Routing before, after;
  before.Resize(3, kTopK);
  after.Resize(3, kTopK);
  ASSERT_TRUE(gate->Route(rows.view(), 0, 0, &before, nullptr).ok());
  rows.view().as<float>()[kDim + 3] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(gate->Route(rows.view(), 0, 0, &after, nullptr).ok());
  for (int j = 0; j < 3 * kTopK; ++j) {
    if (j / kTopK == 1) {
      EXPECT_TRUE(std::isnan(after.weight[j]));
    } else {
      EXPECT_EQ(after.weight[j], before.weight[j]);
    }
  }
}

TEST(Gate, RefusesWhatDoesNotFit) {
  const auto create = [](LayerSpec layer, int64_t num_rows, int64_t num_cols) {
    return std::string(Gate::Create(layer, 0, {RandomMatrix(DType::kF32, num_rows, num_cols, 1)}).status().message());
  };
  EXPECT_THAT(create(Layer(), kExperts, kDim + 1), HasSubstr("layer 3: router is [16, 41], expected [16, 40]"));
  LayerSpec layer = Layer();
  layer.gate.top_k = 17;
  EXPECT_THAT(create(layer, kExperts, kDim), HasSubstr("top_k is 17, expected 1 to 16"));

  const auto gate = Gate::Create(Layer(), 0, {RandomMatrix(DType::kF32, kExperts, kDim, 1)}).value();
  Routing routing;
  routing.Resize(2, kTopK);
  const auto route = [&](const HostMatrix& rows, int64_t first_row) {
    const absl::Status status = gate->Route(rows.view(), first_row, 0, &routing, nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(route(RandomMatrix(DType::kF32, 2, kDim - 1, 1), 0), HasSubstr("fp32 of width 39, expected fp32 of"));
  EXPECT_THAT(route(RandomMatrix(DType::kF16, 2, kDim, 1), 0), HasSubstr("rows are fp16"));
  EXPECT_THAT(route(RandomMatrix(DType::kF32, 2, kDim, 1), 1), HasSubstr("expected room for rows 1 to 3"));
}

}  // namespace
}  // namespace switchyard
