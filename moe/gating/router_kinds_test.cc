// Gates whose logits are more than one product: bias, cosine, shared experts, another top-k, statistics. Logits are
// computed in fp64 here, apart from the router.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/tensor/convert.h"
#include "moe/gating/gate.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int64_t kDim = 96;
constexpr int kExperts = 70, kTopK = 4;  // two slices of columns
constexpr int64_t kProjected = 80;
const std::vector<int64_t> kRowCounts = {1, 15, 16, 37, 200};

LayerSpec Layer() { return {.name = "3", .hidden_dim = kDim, .num_experts = kExperts, .gate = {.top_k = kTopK}}; }

HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(num_rows * num_cols);
  for (float& value : values) value = normal(random);
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), dtype, matrix.buffer.data(),
                  values.size());
  return matrix;
}

std::vector<float> RandomVector(int64_t size, float deviation, uint32_t seed) {
  const HostMatrix matrix = RandomMatrix(DType::kF32, 1, size, deviation, seed);
  return {matrix.view().as<float>(), matrix.view().as<float>() + size};
}

using Doubles = std::vector<double>;

Doubles Widened(const HostMatrix& matrix, int64_t row_idx) {
  Doubles row(matrix.num_cols);
  ConvertElements(matrix.dtype, matrix.view().row(row_idx), DType::kF64, reinterpret_cast<std::byte*>(row.data()),
                  row.size());
  return row;
}

double Dot(const Doubles& a, const Doubles& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

Doubles Product(const Doubles& x, const HostMatrix& weight, const std::vector<float>& bias) {
  Doubles y;
  for (int64_t i = 0; i < weight.num_rows; ++i) y.push_back(Dot(x, Widened(weight, i)) + (bias.empty() ? 0 : bias[i]));
  return y;
}

// Tutel's cosine_top: both factors of unit length, then the temperature's scale.
Doubles CosineLogits(const Doubles& x, const RouterWeights& router) {
  const Doubles p = Product(x, router.projector, router.projector_bias);
  Doubles logits;
  for (int64_t e = 0; e < router.weight.num_rows; ++e) {
    const Doubles direction = Widened(router.weight, e);
    logits.push_back(Dot(p, direction) / std::sqrt(Dot(p, p) * Dot(direction, direction)) * router.logit_scale);
  }
  return logits;
}

using LogitsFn = std::function<Doubles(const Doubles& x)>;

// Expects softmax and top-k. The selection's own tests check every other form.
void ExpectRow(const Doubles& logits, int top_k, const int32_t* experts, const float* weights) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  double sum = 0.0;
  for (double logit : logits) sum += std::exp(logit);
  for (int j = 0; j < top_k; ++j) {
    // Sums of 96 products in fp32 of logits of a few units: errors of some 1e-6.
    EXPECT_NEAR(logits[experts[j]], logits[order[j]], 1e-5);
    const double expected = std::exp(logits[experts[j]]) / sum;
    EXPECT_NEAR(weights[j], expected, 2e-5 * expected);
  }
}

// Routes with all numbers of threads and rows, so that every way of sharing out the work runs.
void ExpectRouted(const LayerSpec& layer, const RouterWeights& router, DType dtype, const LogitsFn& logits) {
  const HostMatrix rows = RandomMatrix(dtype, kRowCounts.back(), kDim, 1.0f, 2);
  std::vector<Doubles> expected;
  for (int64_t i = 0; i < rows.num_rows; ++i) expected.push_back(logits(Widened(rows, i)));
  for (const int num_threads : {1, 3}) {
    std::shared_ptr<LinearContext> context = LinearContext::Create(num_threads).value();
    const auto gate = Gate::Create(layer, 0, router, context).value();
    if (!gate->Accepts(dtype)) GTEST_SKIP() << "no bf16 products on this CPU";
    for (const int64_t num_rows : kRowCounts) {
      Routing routing;
      routing.Resize(num_rows, kTopK);
      ASSERT_TRUE(gate->Route(rows.view().Rows(0, num_rows), 0, 0, &routing, nullptr).ok());
      for (int64_t i = 0; i < num_rows; ++i) {
        ExpectRow(expected[i], kTopK, &routing.expert_idx[i * kTopK], &routing.weight[i * kTopK]);
        ASSERT_FALSE(testing::Test::HasFailure()) << "row " << i << " of " << num_rows;
      }
    }
  }
}

TEST(RouterKinds, BiasIsAddedToLogits) {
  for (const DType stored : {DType::kF32, DType::kBF16}) {
    RouterWeights router{.weight = RandomMatrix(stored, kExperts, kDim, 0.1f, 1)};
    router.bias = RandomVector(kExperts, 1.0f, 4);
    ExpectRouted(Layer(), router, stored, [&](const Doubles& x) { return Product(x, router.weight, router.bias); });
  }
}

TEST(RouterKinds, CosineIsThatOfTutel) {
  for (const DType stored : {DType::kF32, DType::kBF16}) {
    RouterWeights router{.weight = RandomMatrix(stored, kExperts, kProjected, 0.01f, 1)};
    router.projector = RandomMatrix(stored, kProjected, kDim, 0.1f, 3);
    router.projector_bias = RandomVector(kProjected, 0.1f, 4);
    router.logit_scale = 10;
    ExpectRouted(Layer(), router, stored, [&](const Doubles& x) { return CosineLogits(x, router); });
  }
}

TEST(RouterKinds, CosineOfAZeroRowIsEven) {
  RouterWeights router{.weight = RandomMatrix(DType::kF32, kExperts, kProjected, 1.0f, 1)};
  router.projector = RandomMatrix(DType::kF32, kProjected, kDim, 0.1f, 3);
  const auto gate = Gate::Create(Layer(), 0, router).value();
  const HostMatrix row = RandomMatrix(DType::kF32, 1, kDim, 0.0f, 1);
  Routing routing;
  routing.Resize(1, kTopK);
  ASSERT_TRUE(gate->Route(row.view(), 0, 0, &routing, nullptr).ok());
  EXPECT_EQ(routing.expert_idx, (std::vector<int32_t>{0, 1, 2, 3}));
  for (const float weight : routing.weight) EXPECT_FLOAT_EQ(weight, 1.0f / kExperts);
}

// Router and shared gate have the same type or different ones; the rows have every type that the gate then accepts.
TEST(RouterKinds, SharedExpertsFollowTheChoices) {
  for (const DType gate_type : {DType::kF32, DType::kBF16}) {
    LayerSpec layer = Layer();
    layer.num_shared = 2;
    layer.shared_gated = true;
    RouterWeights router{.weight = RandomMatrix(DType::kBF16, kExperts, kDim, 0.1f, 1)};
    router.bias = RandomVector(kExperts, 1.0f, 4);  // not the shared expert's
    router.shared_gate = RandomMatrix(gate_type, 1, kDim, 0.1f, 5);
    const auto gate = Gate::Create(layer, 0, router).value();
    EXPECT_FALSE(gate_type == DType::kF32 && gate->Accepts(DType::kBF16));
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      if (!gate->Accepts(dtype)) continue;
      const HostMatrix rows = RandomMatrix(dtype, 37, kDim, 1.0f, 2);
      Routing routing;
      routing.Resize(37, kTopK + 3);
      ASSERT_TRUE(gate->Route(rows.view(), 0, 0, &routing, nullptr).ok());
      for (int64_t i = 0; i < 37; ++i) {
        const int32_t* experts = &routing.expert_idx[i * (kTopK + 3)];
        const float* weights = &routing.weight[i * (kTopK + 3)];
        const Doubles x = Widened(rows, i);
        ExpectRow(Product(x, router.weight, router.bias), kTopK, experts, weights);
        const double shared = 1 / (1 + std::exp(-Dot(x, Widened(router.shared_gate, 0))));
        for (int j = 0; j < 3; ++j) {
          EXPECT_EQ(experts[kTopK + j], j < 2 ? kExperts + j : -1);
          EXPECT_NEAR(weights[kTopK + j], j < 2 ? shared : 0.0, 1e-6);
        }
      }
    }
  }
}

TEST(RouterKinds, UngatedSharedExpertsWeighOne) {
  LayerSpec layer = Layer();
  layer.num_shared = 1;
  const auto gate = Gate::Create(layer, 0, {.weight = RandomMatrix(DType::kF32, kExperts, kDim, 0.1f, 1)}).value();
  const HostMatrix rows = RandomMatrix(DType::kF32, 2, kDim, 1.0f, 2);
  Routing routing;
  routing.Resize(2, layer.num_choices());
  ASSERT_TRUE(gate->Route(rows.view(), 0, 0, &routing, nullptr).ok());
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_EQ(routing.expert_idx[i * 5 + 4], kExperts);
    EXPECT_EQ(routing.weight[i * 5 + 4], 1.0f);
  }
}

TEST(RouterKinds, CallersMayAskForAnotherTopK) {
  LayerSpec layer = Layer();
  layer.gate.normalization = Normalization::kSum;
  layer.gate.normalizes_single = false;
  const auto gate = Gate::Create(layer, 0, {.weight = RandomMatrix(DType::kF32, kExperts, kDim, 0.1f, 1)}).value();
  const HostMatrix rows = RandomMatrix(DType::kF32, 20, kDim, 1.0f, 2);
  Routing all;
  all.Resize(20, kExperts);
  ASSERT_TRUE(gate->Route(rows.view(), 0, kExperts, &all, nullptr).ok());
  for (const int top_k : {1, 2, 7}) {
    Routing routing;
    routing.Resize(20, 7);
    ASSERT_TRUE(gate->Route(rows.view(), 0, top_k, &routing, nullptr).ok());
    for (int64_t i = 0; i < 20; ++i) {
      const float* best = &all.weight[i * kExperts];  // normalised over all: the scores themselves
      const float divisor = top_k == 1 ? 1.0f : std::accumulate(best, best + top_k, 0.0f);
      for (int j = 0; j < 7; ++j) {
        const bool chosen = j < top_k;
        EXPECT_EQ(routing.expert_idx[i * 7 + j], chosen ? all.expert_idx[i * kExperts + j] : -1);
        EXPECT_NEAR(routing.weight[i * 7 + j], chosen ? best[j] / divisor : 0.0f, 1e-6);
      }
    }
  }
}

TEST(RouterKinds, ScoreCorrectionOfTheChosenGate) {
  LayerSpec layer = Layer();
  layer.more_gates = {{.scoring = Scoring::kSigmoid, .top_k = 1}};
  RouterWeights router{.weight = RandomMatrix(DType::kF32, kExperts, kDim, 0.1f, 1)};
  router.score_correction.assign(kExperts, 0.0f);
  router.score_correction[17] = 5;
  const auto gate = Gate::Create(layer, 1, router).value();
  const HostMatrix rows = RandomMatrix(DType::kF32, 3, kDim, 1.0f, 2);
  Routing routing;
  routing.Resize(3, 1);
  ASSERT_TRUE(gate->Route(rows.view(), 0, 0, &routing, nullptr).ok());
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(routing.expert_idx[i], 17);
    const double logit = Dot(Widened(rows, i), Widened(router.weight, 17));
    EXPECT_NEAR(routing.weight[i], 1 / (1 + std::exp(-logit)), 1e-6);
  }
}

TEST(RouterKinds, StatisticsAreTheRowsWhicheverWayTheyAreSharedOut) {
  RouterWeights router{.weight = RandomMatrix(DType::kF32, kExperts, kDim, 0.1f, 1)};
  const HostMatrix rows = RandomMatrix(DType::kF32, 600, kDim, 1.0f, 2);
  for (const int num_threads : {1, 3}) {
    std::shared_ptr<LinearContext> context = LinearContext::Create(num_threads).value();
    const auto gate = Gate::Create(Layer(), 0, router, context).value();
    for (const int64_t num_rows : {1, 40, 200, 600}) {
      Routing routing;
      routing.Resize(num_rows + 2, kTopK);
      ScoreStats stats, again;
      stats.Reset(num_rows + 2, kExperts);
      again.Reset(num_rows + 2, kExperts);
      ASSERT_TRUE(gate->Route(rows.view().Rows(0, num_rows), 2, 0, &routing, &stats).ok());
      ASSERT_TRUE(gate->Route(rows.view().Rows(0, num_rows), 2, 0, &routing, &again).ok());
      EXPECT_EQ(stats.score_sum, again.score_sum);
      Doubles expected(kExperts);
      for (int64_t i = 0; i < num_rows; ++i) {
        const Doubles logits = Product(Widened(rows, i), router.weight, {});
        double sum = 0.0;
        for (double logit : logits) sum += std::exp(logit);
        for (int e = 0; e < kExperts; ++e) expected[e] += std::exp(logits[e]) / sum;
        EXPECT_NEAR(stats.best_score[i + 2], std::exp(*std::max_element(logits.begin(), logits.end())) / sum, 1e-5);
        EXPECT_FLOAT_EQ(stats.best_score[i + 2], routing.weight[(i + 2) * kTopK]);  // not normalised
      }
      EXPECT_EQ(stats.best_score[0], 0.0f);
      for (int e = 0; e < kExperts; ++e) EXPECT_NEAR(stats.score_sum[e], expected[e], 1e-5 * expected[e]);
    }
  }
}

std::string WhyNot(const LayerSpec& layer, int gate_idx, const RouterWeights& router) {
  const absl::Status status = Gate::Create(layer, gate_idx, router).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(RouterKinds, RefusesWhatDoesNotFit) {
  RouterWeights router{.weight = RandomMatrix(DType::kF32, kExperts, kDim, 0.1f, 1)};
  EXPECT_THAT(WhyNot(Layer(), 1, router), HasSubstr("layer 3: gate 1 of 1"));
  LayerSpec layer = Layer();
  layer.gate.num_groups = 4;
  EXPECT_THAT(WhyNot(layer, 0, router), HasSubstr("num_groups is 4, expected a divisor of 70"));
  layer.gate.num_groups = 7;
  layer.gate.groups_kept = 8;
  EXPECT_THAT(WhyNot(layer, 0, router), HasSubstr("groups_kept is 8, expected 1 to 7"));
  router.bias.resize(3);
  EXPECT_THAT(WhyNot(Layer(), 0, router), HasSubstr("bias of the router has 3 values, expected 70"));
  router.bias.clear();
  router.score_correction.resize(2);
  EXPECT_THAT(WhyNot(Layer(), 0, router), HasSubstr("score correction has 2 values, expected 70"));
  router.score_correction.assign(kExperts, 0.0f);
  router.score_correction[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(WhyNot(Layer(), 0, router), HasSubstr("score correction of expert 5 is nan"));
  router.score_correction.clear();
  layer = Layer();
  layer.shared_gated = true;
  EXPECT_THAT(WhyNot(layer, 0, router), HasSubstr("shared expert's gate is [0, 0], expected [1, 96]"));
  router.projector = RandomMatrix(DType::kF32, kProjected, kDim, 0.1f, 1);
  EXPECT_THAT(WhyNot(Layer(), 0, router), HasSubstr("cosine router is [70, 96], expected [70, 80]"));
  router.weight = RandomMatrix(DType::kF32, kExperts, kProjected, 0.1f, 1);
  EXPECT_THAT(WhyNot(layer, 0, router), HasSubstr("a gated shared expert beside a cosine router"));
}

TEST(RouterKinds, RefusesRoutingsAndStatisticsThatAreTooSmall) {
  LayerSpec layer = Layer();
  layer.num_shared = 1;
  const auto gate = Gate::Create(layer, 0, {.weight = RandomMatrix(DType::kF32, kExperts, kDim, 0.1f, 1)}).value();
  const HostMatrix rows = RandomMatrix(DType::kF32, 2, kDim, 1.0f, 2);
  Routing routing;
  routing.Resize(2, kTopK);
  ScoreStats stats;
  const auto route = [&](int top_k) {
    return std::string(gate->Route(rows.view(), 0, top_k, &routing, &stats).message());
  };
  EXPECT_THAT(route(0), HasSubstr("expected room for rows 0 to 2 of 5"));
  EXPECT_THAT(route(-1), HasSubstr("top_k is -1, expected 1 to 70"));
  EXPECT_THAT(route(71), HasSubstr("top_k is 71, expected 1 to 70"));
  routing.Resize(2, kTopK + 1);
  EXPECT_THAT(route(0), HasSubstr("score statistics have 0 rows and 0 experts, expected 2 and 70"));
}

}  // namespace
}  // namespace switchyard
