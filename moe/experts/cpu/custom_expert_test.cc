#include "moe/experts/custom_expert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/tensor/buffer.h"
#include "base/tensor/convert.h"
#include "moe/experts/cpu/cpu_engine.h"
#include "moe/experts/reference.h"
#include "moe/plan/step_plan.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int64_t kDim = 24, kWidth = 40;
constexpr int kExperts = 3;

HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<double> values(num_rows * num_cols);
  for (double& value : values) value = (static_cast<int>(random() % 129) - 64) / 128.0;  // exact in every type
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  ConvertElements(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), dtype, matrix.buffer.data(),
                  values.size());
  return matrix;
}

LayerSpec Layer() {
  return {.name = "2",
          .hidden_dim = kDim,
          .expert_dim = kWidth,
          .num_experts = kExperts,
          .expert = {.gated = false, .biased = true}};
}

struct OwnedExpert {
  HostMatrix up, down, up_bias, down_bias;
  explicit OwnedExpert(DType dtype, uint32_t seed)
      : up(RandomMatrix(dtype, kWidth, kDim, seed)),
        down(RandomMatrix(dtype, kDim, kWidth, seed + 1)),
        up_bias(RandomMatrix(dtype, 1, kWidth, seed + 2)),
        down_bias(RandomMatrix(dtype, 1, kDim, seed + 3)) {}
  ExpertWeights view() const {
    return {.up = {up.view()}, .down = {down.view()}, .up_bias = up_bias.view(), .down_bias = down_bias.view()};
  }

  // down · max(0, up · x + b_up)² + b_down, in double.
  std::vector<double> Apply(const std::vector<double>& x) const {
    const std::vector<double> w1 = ToDoubles(up.view()), w2 = ToDoubles(down.view());
    std::vector<double> inner = ToDoubles(up_bias.view()), y = ToDoubles(down_bias.view());
    for (int64_t h = 0; h < kWidth; ++h) {
      for (int64_t d = 0; d < kDim; ++d) inner[h] += w1[h * kDim + d] * x[d];
      inner[h] = inner[h] > 0 ? inner[h] * inner[h] : 0;
    }
    for (int64_t d = 0; d < kDim; ++d) {
      for (int64_t h = 0; h < kWidth; ++h) y[d] += w2[d * kWidth + h] * inner[h];
    }
    return y;
  }
};

class SquaredReluTest : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(All, SquaredReluTest, testing::Values(DType::kF64, DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// Row r goes to expert r mod 3 with weight 0.5, and to the next expert with weight 0.25.
Routing TwoExpertsEach(int64_t num_rows) {
  Routing routing;
  routing.Resize(num_rows, 2);
  for (int64_t i = 0; i < 2 * num_rows; ++i) {
    routing.expert_idx[i] = static_cast<int32_t>((i / 2 + i % 2) % kExperts);
    routing.weight[i] = i % 2 == 0 ? 0.5f : 0.25f;
  }
  return routing;
}

TEST_P(SquaredReluTest, MatchesItsFormulaThroughTheEngine) {
  for (const bool weighs_input : {false, true}) {
    LayerSpec layer = Layer();
    layer.expert.weighs_input = weighs_input;
    auto engine = CreateCpuEngine({.compute_dtype = GetParam(), .num_threads = 2, .custom_expert = "squared_relu"});
    ASSERT_TRUE(engine.ok()) << engine.status();
    ASSERT_TRUE((*engine)->AddLayer(layer, kExperts).ok());
    std::vector<OwnedExpert> experts;
    for (int e = 0; e < kExperts; ++e) {
      experts.emplace_back(GetParam(), 10 * e);
      const absl::Status loaded = (*engine)->LoadExpert(LayerId{0}, e, experts[e].view());
      ASSERT_TRUE(loaded.ok()) << loaded;
    }
    EXPECT_GE((*engine)->weight_bytes(), kExperts * 2 * kDim * kWidth * static_cast<int64_t>(SizeOf(GetParam())));
    for (const int64_t num_rows : {1, 40, 500}) {
      const HostMatrix rows = RandomMatrix(GetParam(), num_rows, kDim, 99);
      const Routing routing = TwoExpertsEach(num_rows);
      const StepPlan plan = PlanStep(routing, Placement::Even(kExperts, 1), HomeOffsets(num_rows, 1));
      HostMatrix output = HostMatrix::Allocate(GetParam(), num_rows, kDim);
      ASSERT_TRUE((*engine)->RunExperts(LayerId{0}, plan.ranks[0].view(), rows.view(), output.view()).ok());
      const std::vector<double> got = ToDoubles(output.view()), x = ToDoubles(rows.view());
      // Outputs are around 10 in magnitude; bf16 rounds inner values and outputs to 8 bits.
      const double tolerance = GetParam() == DType::kF64 ? 1e-12 : GetParam() == DType::kF32 ? 1e-4 : 1e-1;
      for (int64_t r = 0; r < num_rows; ++r) {
        std::vector<double> expected(kDim);
        for (int64_t choice = 2 * r; choice < 2 * r + 2; ++choice) {
          const double weight = routing.weight[choice];
          std::vector<double> row(x.begin() + r * kDim, x.begin() + (r + 1) * kDim);
          for (double& value : row) value *= weighs_input ? weight : 1;
          const std::vector<double> y = experts[routing.expert_idx[choice]].Apply(row);
          for (int64_t d = 0; d < kDim; ++d) expected[d] += weighs_input ? y[d] : weight * y[d];
        }
        for (int64_t d = 0; d < kDim; ++d) ASSERT_NEAR(got[r * kDim + d], expected[d], tolerance) << r << " " << d;
      }
    }
  }
}

TEST(CustomExpert, UnknownNamesListTheKnown) {
  const absl::Status status = CreateCpuEngine({.custom_expert = "square_relu"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no custom expert 'square_relu'"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("squared_relu"));
}

TEST(CustomExpert, NamesAreTakenOnce) {
  const HostExpertFactory factory = FindCustomExpert("squared_relu").value();
  EXPECT_EQ(RegisterCustomExpert("squared_relu", factory).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(RegisterCustomExpert("", factory).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RegisterCustomExpert("none", nullptr).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CustomExpert, RefusalsOfAFactoryNameLayerAndSlot) {
  auto engine = CreateCpuEngine({.num_threads = 1, .custom_expert = "squared_relu"}).value();
  LayerSpec layer = Layer();
  layer.expert.gated = true;
  ASSERT_TRUE(engine->AddLayer(layer, 1).ok());
  const absl::Status status = engine->LoadExpert(LayerId{0}, 0, OwnedExpert(DType::kF32, 1).view());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 2, expert in slot 0: gate: squared_relu"));
}

// A custom expert may give ExpertSpec's fields a meaning of its own, so combinations that the built-in formula refuses
// are accepted.
TEST(CustomExpert, FormulasAreTheExpertsOwn) {
  LayerSpec layer = Layer();
  layer.expert.limit = 7;
  EXPECT_FALSE(CreateCpuEngine({.num_threads = 1}).value()->AddLayer(layer, 1).ok());
  EXPECT_TRUE(CreateCpuEngine({.num_threads = 1, .custom_expert = "squared_relu"}).value()->AddLayer(layer, 1).ok());
}

}  // namespace
}  // namespace switchyard
