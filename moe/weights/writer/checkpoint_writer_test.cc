// Synthetic checkpoints of every family open, are of the sizes asked for and compute finite outputs.
#include "moe/weights/writer/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "moe/weights/families/family.h"
#include "moe/weights/plain_layer.h"
#include "moe/weights/test_checkpoint.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

std::string NewFolder(const std::string& name) {
  const std::string folder = TempPath(name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  return folder;
}

std::string Write(const CheckpointOptions& options) {
  const std::string folder = NewFolder("written");
  const absl::Status status = WriteCheckpoint(folder, options);
  EXPECT_TRUE(status.ok()) << status;
  return folder;
}

class Writer : public testing::TestWithParam<std::string> {};

TEST_P(Writer, WritesWhatOpens) {
  CheckpointOptions options = {.family = GetParam(), .hidden_dim = 32, .expert_dim = 24, .num_experts = 6};
  options.shared_dim = 48;
  const auto source = OpenWeightSource(Write(options));
  ASSERT_TRUE(source.ok()) << source.status();
  const LayerSpec& layer = (*source)->spec().layers.at(0);
  EXPECT_EQ(layer.hidden_dim, 32);
  EXPECT_EQ(layer.expert_dim, 24);
  EXPECT_EQ(layer.num_experts, 6);
  EXPECT_EQ((*source)->spec().dtype, DType::kBF16);
  const auto plain = PlainLayer::Read(**source, 0);
  ASSERT_TRUE(plain.ok()) << plain.status();
  const Doubles rows(2 * 32, 0.5);
  const Doubles output = plain->Forward(rows, plain->Route(rows));
  for (double value : output) {
    EXPECT_TRUE(std::isfinite(value));
    EXPECT_LT(std::abs(value), 10);
  }
  EXPECT_NE(output[0], 0);
}

INSTANTIATE_TEST_SUITE_P(Every, Writer, testing::ValuesIn(KnownFamilies()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(Writer, QuantisedExperts) {
  for (const char* family : {"deepseek_v3", "qwen3_moe", "minimax_m2", "granitemoe"}) {
    CheckpointOptions options = {.family = family, .hidden_dim = 160, .expert_dim = 136};
    options.dtype = "fp8";
    const auto source = OpenWeightSource(Write(options));
    ASSERT_TRUE(source.ok()) << family << ": " << source.status();
    EXPECT_EQ((*source)->spec().dtype, DType::kBF16);
    for (double value : ToDoubles((*source)->ReadExpert(0, 7)->down)) ASSERT_LE(std::abs(value), 0.1);
  }
  CheckpointOptions options = {.family = "gpt_oss", .dtype = "mxfp4"};
  const auto source = OpenWeightSource(Write(options));
  ASSERT_TRUE(source.ok()) << source.status();
  for (double value : ToDoubles((*source)->ReadExpert(0, 7)->up)) ASSERT_LE(std::abs(value), 0.125);
}

TEST(Writer, EqualOptionsMakeEqualFilesAndShardsHoldTheSame) {
  CheckpointOptions options = {.family = "mixtral", .num_layers = 2};
  const auto all = [&] { return AllWeights(**OpenWeightSource(Write(options))); };
  const std::vector<std::string> first = all();
  EXPECT_EQ(all(), first);
  options.max_shard_bytes = 100'000;
  EXPECT_EQ(all(), first);
  EXPECT_TRUE(std::filesystem::exists(TempPath("written") + "/model.safetensors.index.json"));
  options.seed = 2;
  EXPECT_NE(all(), first);
}

// The tensors are longer than a piece, so that several pieces make up each.
TEST(Writer, TensorsAreStreamedInPieces) {
  CheckpointOptions options = {.family = "granitemoe", .hidden_dim = 512, .expert_dim = 640};
  const auto source = OpenWeightSource(Write(options));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_NE(AllWeights(**source)[1], AllWeights(**source)[4]);
}

TEST(Writer, WhatDoesNotFitIsNamed) {
  const auto error = [](CheckpointOptions options) {
    return std::string(WriteCheckpoint(NewFolder("refused"), options).message());
  };
  EXPECT_THAT(error({.family = "llama"}), HasSubstr("family: found 'llama', expected one of dbrx, "));
  EXPECT_THAT(error({.family = "mixtral", .dtype = "mxfp4"}), HasSubstr("dtype: found mxfp4, which no checkpoint of"));
  EXPECT_THAT(error({.family = "llama4", .dtype = "fp8"}),
              HasSubstr("dtype: found fp8, which no checkpoint of llama4"));
  EXPECT_THAT(error({.family = "gpt_oss", .expert_dim = 40, .dtype = "mxfp4"}), HasSubstr("expected a multiple of 32"));
  EXPECT_THAT(error({.family = "mixtral", .dtype = "int4"}), HasSubstr("int4"));
  EXPECT_THAT(error({.family = "mixtral", .top_k = 9}), HasSubstr("num_experts_per_tok: found the number 9"));
  EXPECT_TRUE(absl::IsNotFound(WriteCheckpoint("no/such/folder", {})) ||
              absl::IsUnavailable(WriteCheckpoint("no/such/folder", {})));
}

}  // namespace
}  // namespace switchyard
