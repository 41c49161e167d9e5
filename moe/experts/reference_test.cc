#include "moe/experts/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace switchyard {
namespace {

ConstMatrixView View(const std::vector<double>& values, int64_t num_rows, int64_t num_cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), DType::kF64, num_rows, num_cols};
}

// D = 2, H = 1, worked out by hand.
struct ByHand {
  const std::vector<double> up{1, 2}, gate{3, -1}, down{1, -2}, up_bias{0.5}, down_bias{10, 20};
  const std::vector<double> row{2, 1};
  LayerSpec layer{.name = "0", .hidden_dim = 2, .expert_dim = 1, .num_experts = 1};
  Routing routing{.num_rows = 1, .top_k = 1, .expert_idx = {0}, .weight = {0.25f}};

  std::vector<double> Run(ExpertWeights weights) {
    weights.up = {View(up, 1, 2)};
    weights.down = {View(down, 2, 1)};
    return ReferenceExperts(layer, {&weights, 1}, View(row, 1, 2), routing);
  }
};

TEST(ReferenceExperts, Gated) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kSilu, .gated = true};
  // up = 4, gate = 5: h = 4 · 5 / (1 + e^-5)
  const double h = 20 / (1 + std::exp(-5.0));
  const std::vector<double> output = c.Run({.gate = {View(c.gate, 1, 2)}});
  EXPECT_DOUBLE_EQ(output[0], 0.25 * h);
  EXPECT_DOUBLE_EQ(output[1], 0.25 * -2 * h);
}

TEST(ReferenceExperts, PlainWithBiases) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kRelu, .gated = false, .biased = true};
  const std::vector<double> output = c.Run({.up_bias = View(c.up_bias, 1, 1), .down_bias = View(c.down_bias, 1, 2)});
  EXPECT_DOUBLE_EQ(output[0], 0.25 * (4.5 + 10));
  EXPECT_DOUBLE_EQ(output[1], 0.25 * (-9 + 20));
}

TEST(ReferenceExperts, GeluIsTheErfForm) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kGelu, .gated = false};
  EXPECT_DOUBLE_EQ(c.Run({})[0], 0.25 * 2 * (1 + std::erf(4 / std::sqrt(2.0))));
}

TEST(ReferenceExperts, GeluTanhAndQuickGelu) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kGeluTanh, .gated = false};
  // tanh form at 4: 2 · (1 + tanh(√(2/π) · (4 + 0.044715 · 64)))
  EXPECT_DOUBLE_EQ(c.Run({})[0], 0.25 * 2 * (1 + std::tanh(0.7978845608028654 * 6.86176)));
  c.layer.expert.activation = Activation::kQuickGelu;
  EXPECT_DOUBLE_EQ(c.Run({})[0], 0.25 * 4 / (1 + std::exp(-6.808)));
}

TEST(ReferenceExperts, GatedWithBiases) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kRelu, .gated = true, .biased = true};
  const std::vector<double> gate_bias{-2};
  const std::vector<double> output = c.Run({.gate = {View(c.gate, 1, 2)},
                                            .up_bias = View(c.up_bias, 1, 1),
                                            .gate_bias = View(gate_bias, 1, 1),
                                            .down_bias = View(c.down_bias, 1, 2)});
  // up = 4.5, gate = 3: h = 13.5
  EXPECT_DOUBLE_EQ(output[0], 0.25 * (13.5 + 10));
  EXPECT_DOUBLE_EQ(output[1], 0.25 * (-27 + 20));
}

TEST(ReferenceExperts, ClampedBeforeTheActivation) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kQuickGelu, .gated = true, .limit = 3, .up_offset = 1};
  // up = 4 and gate = 5 both become 3: h = 3 / (1 + e^(-1.702 · 3)) · (3 + 1)
  EXPECT_DOUBLE_EQ(c.Run({.gate = {View(c.gate, 1, 2)}})[0], 0.25 * 12 / (1 + std::exp(-5.106)));
  // up = -4 becomes -3; gate = -5 has no lower bound: h = -5 / (1 + e^8.51) · (-3 + 1)
  const std::vector<double> row{-2, -1};
  ExpertWeights weights{.up = {View(c.up, 1, 2)}, .gate = {View(c.gate, 1, 2)}, .down = {View(c.down, 2, 1)}};
  const std::vector<double> output = ReferenceExperts(c.layer, {&weights, 1}, View(row, 1, 2), c.routing);
  EXPECT_DOUBLE_EQ(output[0], 0.25 * 10 / (1 + std::exp(8.51)));
}

TEST(ReferenceExperts, WeighsTheInput) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kRelu, .gated = false, .biased = true, .weighs_input = true};
  const std::vector<double> output = c.Run({.up_bias = View(c.up_bias, 1, 1), .down_bias = View(c.down_bias, 1, 2)});
  // up = 0.25 · 4 + 0.5
  EXPECT_DOUBLE_EQ(output[0], 1.5 + 10);
  EXPECT_DOUBLE_EQ(output[1], -3 + 20);
}

TEST(ReferenceExperts, SharedExpertsFollowTheOthers) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kRelu, .gated = false};
  c.layer.num_shared = 1;
  const std::vector<double> shared_up{0, 1};
  const ExpertWeights experts[] = {{.up = {View(c.up, 1, 2)}, .down = {View(c.down, 2, 1)}},
                                   {.up = {View(shared_up, 1, 2)}, .down = {View(c.down, 2, 1)}}};
  const Routing routing{.num_rows = 1, .top_k = 2, .expert_idx = {0, 1}, .weight = {0.25f, 1}};
  const std::vector<double> output = ReferenceExperts(c.layer, experts, View(c.row, 1, 2), routing);
  EXPECT_DOUBLE_EQ(output[0], 0.25 * 4 + 1);
  EXPECT_DOUBLE_EQ(output[1], -2 * (0.25 * 4 + 1));
}

TEST(ReferenceExperts, ADroppedChoiceAddsNothing) {
  ByHand c;
  c.layer.expert = {.activation = Activation::kRelu, .gated = false};
  c.routing.expert_idx = {-1};
  EXPECT_EQ(c.Run({}), (std::vector<double>{0, 0}));
}

TEST(ReferenceExperts, TurnsTransposedWeights) {
  const std::vector<double> stored{1, 2, 3, 4, 5, 6};
  EXPECT_EQ(ToDoubles(WeightView{View(stored, 2, 3), true}), (std::vector<double>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(ToDoubles(WeightView{View(stored, 2, 3), false}), stored);
}

}  // namespace
}  // namespace switchyard
