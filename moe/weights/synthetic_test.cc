#include "moe/weights/synthetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "base/tensor/convert.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

std::unique_ptr<WeightSource> Open(const std::string& options) {
  auto source = OpenWeightSource("synthetic:" + options);
  EXPECT_TRUE(source.ok()) << source.status();
  return *std::move(source);
}

std::vector<double> Values(ConstMatrixView matrix) {
  std::vector<double> values(matrix.num_rows * matrix.num_cols);
  ConvertElements(matrix.dtype, matrix.data, DType::kF64, reinterpret_cast<std::byte*>(values.data()), values.size());
  return values;
}

std::vector<double> UpOf(WeightSource& source, int layer_idx, int expert_idx) {
  std::vector<double> values = Values(source.ReadExpert(layer_idx, expert_idx)->up.matrix);
  source.ReleaseExpert(layer_idx, expert_idx);
  return values;
}

TEST(SyntheticOptions, DefaultsAreTutelsHelloworld) {
  const auto options = SyntheticOptions::Parse("");
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->ToString(),
            "dim=2048,hidden=2048,experts=2,topk=2,act=relu,glu=0,bias=1,layers=1,dtype=fp32,seed=0");
}

TEST(SyntheticOptions, EveryKeyIsRead) {
  const std::string text = "dim=8,hidden=12,experts=5,topk=3,act=gelu,glu=1,bias=0,layers=2,dtype=bf16,seed=9";
  EXPECT_EQ(SyntheticOptions::Parse(text)->ToString(), text);
}

TEST(SyntheticOptions, DependentDefaultsFollowTheirKeys) {
  EXPECT_EQ(SyntheticOptions::Parse("experts=1")->top_k, 1);
  EXPECT_FALSE(SyntheticOptions::Parse("glu=1")->biased);
}

TEST(SyntheticOptions, ErrorsNameTheKeyWhatWasFoundAndWhatWasExpected) {
  const std::pair<const char*, const char*> cases[] = {
      {"dims=3", "unknown key 'dims', expected dim, hidden, experts"},
      {"dim", "dim: found '', expected a whole number from 1 to 1048576"},
      {"dim=0", "dim: found '0', expected a whole number from 1 to 1048576"},
      {"dim=1048577", "dim: found '1048577'"},
      {"hidden=-4", "hidden: found '-4'"},
      {"experts=many", "experts: found 'many', expected a whole number from 1 to 65536"},
      {"experts=4,topk=5", "topk: found '5', expected a whole number from 1 to 4"},
      {"layers=10001", "layers: found '10001'"},
      {"act=tanh", "act: found 'tanh', expected relu, silu or gelu"},
      {"glu=2", "glu: found '2', expected a whole number from 0 to 1"},
      {"glu=1,bias=1", "bias: found '1', expected 0 when glu=1"},
      {"dtype=int8", "dtype: found 'int8', expected fp32, fp64, fp16 or bf16"},
      {"seed=18446744073709551616", "seed: found '18446744073709551616'"},
      {"dim=8,dim=8", "dim: given twice"},
      {"dim=8,", "unknown key ''"},
      {"dim=1048576,hidden=1048576", "bytes in one expert or router, expected at most"},
      {"dim=1048576,hidden=1,experts=65536", "bytes in one expert or router, expected at most"},
  };
  for (const auto& [text, message] : cases) {
    const auto source = OpenWeightSource(absl::StrCat("synthetic:", text));
    EXPECT_TRUE(absl::IsInvalidArgument(source.status())) << text;
    EXPECT_THAT(std::string(source.status().message()), HasSubstr(message)) << text;
  }
}

TEST(SyntheticSource, SpecFollowsTheOptions) {
  const auto source = Open("dim=8,hidden=12,experts=5,topk=3,act=silu,glu=1,layers=2,dtype=fp16");
  const ModelSpec& spec = source->spec();
  EXPECT_EQ(spec.family, "synthetic");
  EXPECT_EQ(spec.dtype, DType::kF16);
  ASSERT_EQ(spec.layers.size(), 2u);
  EXPECT_EQ(spec.layers[1].name, "1");
  EXPECT_EQ(spec.layers[1].hidden_dim, 8);
  EXPECT_EQ(spec.layers[1].expert_dim, 12);
  EXPECT_EQ(spec.layers[1].num_experts, 5);
  EXPECT_EQ(spec.layers[1].gate.top_k, 3);
  EXPECT_EQ(spec.layers[1].gate.normalization, Normalization::kSum);
  EXPECT_EQ(spec.layers[1].expert.activation, Activation::kSilu);
  EXPECT_TRUE(spec.layers[1].expert.gated);
  EXPECT_FALSE(spec.layers[1].expert.biased);
  EXPECT_EQ(Open("topk=1")->spec().layers[0].gate.normalization, Normalization::kNone);
}

TEST(SyntheticSource, MatricesHaveTheShapesOfTheLayer) {
  const auto plain = Open("dim=8,hidden=12,experts=3");
  const auto router = plain->ReadRouter(0);
  EXPECT_EQ(router->weight.num_rows, 3);
  EXPECT_EQ(router->weight.num_cols, 8);
  const auto expert = plain->ReadExpert(0, 2);
  EXPECT_EQ(expert->up.matrix.num_rows, 12);
  EXPECT_EQ(expert->up.matrix.num_cols, 8);
  EXPECT_EQ(expert->down.matrix.num_rows, 8);
  EXPECT_EQ(expert->down.matrix.num_cols, 12);
  EXPECT_EQ(expert->up_bias.num_cols, 12);
  EXPECT_EQ(expert->down_bias.num_cols, 8);
  EXPECT_FALSE(expert->gate.present());
  const auto gated = Open("dim=8,hidden=12,glu=1")->ReadExpert(0, 0);
  EXPECT_EQ(gated->gate.matrix.num_rows, 12);
  EXPECT_EQ(gated->up_bias.data, nullptr);
}

TEST(SyntheticSource, ValuesDoNotDependOnOrderOrProcess) {
  const std::string options = "dim=33,hidden=65,experts=4,layers=2,seed=7";
  const auto forward = Open(options), backward = Open(options);
  std::vector<std::vector<double>> first;
  for (int idx = 0; idx < 8; ++idx) first.push_back(UpOf(*forward, idx / 4, idx % 4));
  for (int idx = 7; idx >= 0; --idx) EXPECT_EQ(UpOf(*backward, idx / 4, idx % 4), first[idx]);
  // Every expert of every layer differs from every other.
  EXPECT_EQ(std::set<std::vector<double>>(first.begin(), first.end()).size(), 8u);
  EXPECT_NE(UpOf(*Open("dim=33,hidden=65,experts=4,layers=2,seed=8"), 0, 0), first[0]);
  // More experts or layers change nothing about the experts that both have.
  EXPECT_EQ(UpOf(*Open("dim=33,hidden=65,experts=9,layers=3,seed=7"), 1, 3), first[7]);
}

// The values are pinned because the front and the workers may be different builds.
TEST(SyntheticSource, ValuesArePinned) {
  const auto source = Open("dim=3,hidden=2");
  const std::vector<double> up = UpOf(*source, 0, 1);
  EXPECT_FLOAT_EQ(up[0], 0.9335784912109375f);
  EXPECT_FLOAT_EQ(up[5], -0.5561676025390625f);
}

TEST(SyntheticSource, ExpertsInUseTogetherDoNotDisturbEachOther) {
  const auto source = Open("dim=16,hidden=16,experts=20");
  std::vector<ExpertWeights> experts;
  std::vector<std::vector<double>> values;
  for (int idx = 0; idx < 20; ++idx) {
    experts.push_back(*source->ReadExpert(0, idx));
    values.push_back(Values(experts.back().down.matrix));
  }
  for (int idx = 0; idx < 20; idx += 2) source->ReleaseExpert(0, idx);
  for (int idx = 1; idx < 20; idx += 2) EXPECT_EQ(Values(experts[idx].down.matrix), values[idx]);
}

TEST(SyntheticSource, ValuesAreUniformAtUnitScale) {
  const auto source = Open("dim=512,hidden=256,glu=1,experts=8");
  const auto check = [](ConstMatrixView matrix, double fan_in) {
    const std::vector<double> values = Values(matrix);
    const double bound = std::sqrt(3 / fan_in);
    double sum = 0, squares = 0, largest = 0;
    for (double value : values) {
      sum += value;
      squares += value * value;
      largest = std::max(largest, std::abs(value));
    }
    const double count = values.size();
    EXPECT_LE(largest, bound);
    EXPECT_GT(largest, 0.99 * bound);
    EXPECT_LT(std::abs(sum / count), 4 * bound / std::sqrt(3 * count));  // four standard errors
    EXPECT_NEAR(squares / count * fan_in, 1, 0.05);
  };
  const auto expert = source->ReadExpert(0, 5);
  check(expert->up.matrix, 512);
  check(expert->gate.matrix, 512);
  check(expert->down.matrix, 256);
  check(source->ReadRouter(0)->weight.view(), 512);
}

TEST(SyntheticSource, MatricesOfOneExpertAreIndependent) {
  const auto source = Open("dim=256,hidden=256,glu=1");
  const auto expert = source->ReadExpert(0, 0);
  const std::vector<double> up = Values(expert->up.matrix), gate = Values(expert->gate.matrix);
  double product = 0;
  for (size_t i = 0; i < up.size(); ++i) product += up[i] * gate[i];
  EXPECT_LT(std::abs(product) * 256 / up.size(), 4 / std::sqrt(up.size()));
}

TEST(SyntheticSource, TypesHoldTheSameValuesRounded) {
  const std::string shape = "dim=40,hidden=70,dtype=";
  const std::vector<double> exact = UpOf(*Open(shape + "fp32"), 0, 0);
  EXPECT_EQ(UpOf(*Open(shape + "fp64"), 0, 0), exact);
  for (const auto& [dtype, epsilon] : {std::pair("fp16", 0x1p-11), std::pair("bf16", 0x1p-8)}) {
    const std::vector<double> rounded = UpOf(*Open(shape + dtype), 0, 0);
    for (size_t i = 0; i < exact.size(); ++i) {
      ASSERT_NEAR(rounded[i], exact[i], std::abs(exact[i]) * epsilon + 1e-7) << dtype;
    }
  }
}

TEST(SyntheticSource, FingerprintIsOfWhatTheOptionsMean) {
  EXPECT_EQ(Open("")->spec().fingerprint, Open("seed=0,dim=2048")->spec().fingerprint);
  EXPECT_NE(Open("")->spec().fingerprint, Open("seed=1")->spec().fingerprint);
  EXPECT_NE(Open("")->spec().fingerprint, Open("dtype=bf16")->spec().fingerprint);
}

TEST(SyntheticSource, IndexesOutOfRangeAreRefused) {
  const auto source = Open("dim=4,hidden=4");
  for (int idx : {-1, 1}) {
    EXPECT_TRUE(absl::IsInvalidArgument(source->ReadRouter(idx).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(source->ReadExpert(idx, 0).status()));
  }
  for (int idx : {-1, 2}) EXPECT_TRUE(absl::IsInvalidArgument(source->ReadExpert(0, idx).status()));
  source->ReleaseExpert(5, 5);
}

}  // namespace
}  // namespace switchyard
