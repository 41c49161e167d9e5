#include "moe/experts/check_layer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace switchyard {
namespace {

using testing::HasSubstr;

LayerSpec Layer(ExpertSpec expert) { return {.name = "7", .hidden_dim = 8, .expert_dim = 4, .expert = expert}; }

void ExpectRefused(ExpertSpec expert, absl::StatusCode code, const std::string& text) {
  const absl::Status status = CheckExpertFormula(Layer(expert));
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 7: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}

TEST(CheckLayer, EveryFormulaOfTheFamiliesPasses) {
  for (const Activation activation :
       {Activation::kSilu, Activation::kGelu, Activation::kRelu, Activation::kGeluTanh, Activation::kQuickGelu}) {
    for (const bool gated : {true, false}) {
      EXPECT_TRUE(CheckExpertFormula(Layer({.activation = activation, .gated = gated, .biased = true})).ok());
      EXPECT_TRUE(CheckExpertFormula(Layer({.activation = activation, .gated = gated, .weighs_input = true})).ok());
    }
  }
  for (const Activation activation : {Activation::kSilu, Activation::kQuickGelu}) {
    EXPECT_TRUE(CheckExpertFormula(Layer({.activation = activation, .biased = true, .limit = 7, .up_offset = 1})).ok());
  }
}

TEST(CheckLayer, RefusesFormulasThatNoEngineHas) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument, kUnimplemented = absl::StatusCode::kUnimplemented;
  ExpectRefused({.limit = -7}, kInvalid, "limit -7");
  ExpectRefused({.limit = std::numeric_limits<double>::quiet_NaN()}, kInvalid, "limit nan");
  ExpectRefused({.up_offset = std::numeric_limits<double>::infinity()}, kInvalid, "up_offset inf");
  ExpectRefused({.gated = false, .limit = 7}, kInvalid, "limit: only gated experts");
  ExpectRefused({.gated = false, .up_offset = 1}, kInvalid, "up_offset: only gated experts");
  ExpectRefused({.activation = Activation::kGelu, .limit = 7}, kUnimplemented, "limit with activation gelu");
  ExpectRefused({.activation = Activation::kRelu, .up_offset = 1}, kUnimplemented, "up_offset with activation relu");
}

TEST(CheckLayer, RefusesSizes) {
  LayerSpec layer = Layer({});
  EXPECT_TRUE(CheckLayerSizes(layer, 0).ok());
  EXPECT_EQ(CheckLayerSizes(layer, -1).code(), absl::StatusCode::kInvalidArgument);
  layer.expert_dim = 0;
  EXPECT_THAT(std::string(CheckLayerSizes(layer, 1).message()), HasSubstr("layer 7: hidden_dim 8, expert_dim 0"));
}

}  // namespace
}  // namespace switchyard
