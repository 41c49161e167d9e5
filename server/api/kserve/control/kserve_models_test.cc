#include "server/api/kserve/control/kserve_models.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/common.h>
#include <gtest/gtest.h>

#include "server/api/kserve/control/kserve_config.h"
#include "server/api/kserve/control/kserve_repository.h"
#include "server/api/kserve/control/kserve_statistics.h"
#include "server/models/testing.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

KserveModels ModelsOf(const std::vector<ModelOption>& options) {
  return KserveModels([table = TableOf(options)] { return table; });
}

const ModelOption kSmall = {"small", "synthetic:dim=8,hidden=16,experts=6,topk=2,layers=2,dtype=bf16"};
const ModelOption kDeep = {"deep.one", "synthetic:dim=8,hidden=8,experts=4,topk=1,layers=40,dtype=fp32"};

std::vector<std::string> NamesOf(const KserveModels& models) {
  std::vector<std::string> names;
  for (const auto& entry : models.entries()) names.push_back(entry->name);
  return names;
}

TEST(KserveModels, EveryLayerIsAModel) {
  const KserveModels models = ModelsOf({kSmall});
  EXPECT_THAT(NamesOf(models), ElementsAre("small.0", "small.1"));
  for (const char* version : {"", "1"}) {
    const auto found = models.Find("small.1", version);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ((*found)->layer, models.entries()[1]->layer);
  }
}

TEST(KserveModels, UnknownNamesAndVersionsAreToldWhatThereIs) {
  const KserveModels models = ModelsOf({kSmall, kDeep});
  const absl::Status layer = models.Find("small.2", "").status();
  EXPECT_TRUE(absl::IsNotFound(layer));
  EXPECT_THAT(std::string(layer.message()), AllOf(HasSubstr("'small.2'"), HasSubstr("there are: small.0, small.1")));
  EXPECT_THAT(std::string(layer.message()), Not(HasSubstr("deep")));
  EXPECT_THAT(std::string(models.Find("deep.one.77", "").status().message()), HasSubstr("deep.one.19 and 20 more"));
  EXPECT_THAT(std::string(models.Find("smaller.0", "").status().message()), HasSubstr("small.0, small.1, deep.one.0"));
  const absl::Status version = models.Find("small.0", "3").status();
  EXPECT_TRUE(absl::IsNotFound(version)) << version;
  EXPECT_THAT(std::string(version.message()), HasSubstr("version 3 is not found; it has version 1"));
  EXPECT_TRUE(absl::IsInvalidArgument(models.Find("small.0", "latest").status()));
}

TEST(KserveModels, WhatACallerSentIsShownCut) {
  const absl::Status status = ModelsOf({kSmall}).Find(std::string(100'000, 'x'), "").status();
  EXPECT_LT(status.message().size(), 300);
  for (size_t num_before = 95; num_before <= 101; ++num_before) {
    std::string text(num_before, 'x');
    for (int i = 0; i < 4; ++i) text += "…";
    EXPECT_TRUE(google::protobuf::internal::IsStructurallyValidUTF8(QuotedText(text))) << num_before;
  }
}

TEST(KserveModels, NamesMayHaveDots) {
  const KserveModels models = ModelsOf({kSmall, {"small.1", "synthetic:dim=8,hidden=8,experts=4,topk=1,layers=1"}});
  EXPECT_THAT(NamesOf(models), ElementsAre("small.0", "small.1", "small.1.0"));
  EXPECT_EQ((*models.Find("small.1.0", ""))->layer->spec.hidden_dim, 8);
  EXPECT_EQ((*models.Find("small.1.0", ""))->model->name, "small.1");
}

TEST(KserveModels, WhatIsKnownAndNotServedIsUnavailable) {
  KnownModel small = Served(kSmall);
  small.layers[1].is_served = false;
  const KnownModel later = {.name = "later", .location = "/models/later", .reason = "not loaded"};
  const auto table = std::make_shared<const ModelTable>(std::vector<KnownModel>{small, later});
  const KserveModels models([table] { return table; });
  EXPECT_THAT(NamesOf(models), ElementsAre("small.0"));
  const auto expect_unavailable = [&](const std::string& name, const std::string& text) {
    const absl::Status status = models.Find(name, "").status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(std::string(status.message()), text);
  };
  expect_unavailable("small.1", "model 'small.1' is unloaded");
  expect_unavailable("later", "model 'later' is not loaded");
  expect_unavailable("later.0", "model 'later.0' is not loaded");
  EXPECT_TRUE(absl::IsNotFound(models.Find("small.2", "").status()));
  EXPECT_TRUE(absl::IsNotFound(models.Find("small", "").status()));
}

std::vector<std::string> Shown(const inference::RepositoryIndexResponse& index) {
  std::vector<std::string> lines;
  for (const auto& model : index.models()) {
    lines.push_back(absl::StrCat(model.name(), " ", model.state(), model.reason().empty() ? "" : ": ", model.reason()));
  }
  return lines;
}

TEST(KserveRepository, TheIndexTellsStatesAndReasons) {
  KnownModel small = Served(kSmall);
  small.layers[1].is_served = false;
  KnownModel leaving = small;
  leaving.name = "leaving";
  leaving.loaded = nullptr;
  leaving.layers[0].is_served = false;
  leaving.change = KnownModel::Change::kUnloading;
  KnownModel coming = {.name = "coming", .location = "/models/coming", .reason = "not loaded"};
  coming.change = KnownModel::Change::kLoading;
  const KnownModel broken = {.name = "broken", .location = "/models/broken", .reason = "not loaded: no tensor x"};
  small.reason = "not reloaded: no tensor y";
  const ModelTable table({small, leaving, coming, broken});
  EXPECT_THAT(
      Shown(IndexOf(table, "serving", false)),
      ElementsAre("small.0 READY: not reloaded: no tensor y", "small.1 UNAVAILABLE: unloaded", "leaving.0 UNLOADING",
                  "leaving.1 UNLOADING", "coming LOADING", "broken UNAVAILABLE: not loaded: no tensor x"));
  EXPECT_THAT(Shown(IndexOf(table, "serving", true)), ElementsAre("small.0 READY: not reloaded: no tensor y"));
  EXPECT_THAT(Shown(IndexOf(table, "recovering", true)), ElementsAre());
  EXPECT_EQ(Shown(IndexOf(table, "recovering", false))[0], "small.0 UNAVAILABLE: recovering");
  EXPECT_EQ(Shown(IndexOf(table, "starting", false))[0], "small.0 LOADING: starting");
}

TEST(KserveRepository, ParametersThatAreNotTakenAreNamed) {
  inference::RepositoryModelLoadRequest load;
  EXPECT_THAT(std::string(CheckLoad(load).message()), HasSubstr("model_name"));
  load.set_model_name("m");
  EXPECT_TRUE(CheckLoad(load).ok());
  (*load.mutable_parameters())["file:1/model.onnx"].set_bytes_param("x");
  EXPECT_TRUE(absl::IsInvalidArgument(CheckLoad(load)));
  EXPECT_THAT(std::string(CheckLoad(load).message()), HasSubstr("'file:1/model.onnx'"));
  inference::RepositoryModelUnloadRequest unload;
  unload.set_model_name("m");
  (*unload.mutable_parameters())["unload_dependents"].set_bool_param(true);
  EXPECT_TRUE(CheckUnload(unload).ok());
  (*unload.mutable_parameters())["now"].set_bool_param(true);
  EXPECT_THAT(std::string(CheckUnload(unload).message()), HasSubstr("'now'"));
  unload.set_repository_name("r");
  EXPECT_THAT(std::string(CheckUnload(unload).message()), HasSubstr("repository_name"));
}

TEST(KserveMetadata, TensorsHaveTheLayersShapesAndComputeType) {
  const KserveModels models = ModelsOf({kSmall});
  const auto metadata = MetadataOf(*models.entries()[0]);
  EXPECT_EQ(metadata.name(), "small.0");
  EXPECT_THAT(metadata.versions(), ElementsAre("1"));
  ASSERT_EQ(metadata.inputs_size(), 1);
  EXPECT_EQ(metadata.inputs(0).datatype(), "BF16");
  EXPECT_THAT(metadata.inputs(0).shape(), ElementsAre(-1, 8));
  ASSERT_EQ(metadata.outputs_size(), 3);
  EXPECT_EQ(metadata.outputs(1).datatype(), "INT32");
  EXPECT_THAT(metadata.outputs(2).shape(), ElementsAre(-1, 2));
  const auto config = ConfigOf(*models.entries()[0]);
  EXPECT_EQ(config.max_batch_size(), 0);
  EXPECT_TRUE(config.has_model_transaction_policy());
  EXPECT_EQ(config.input(0).data_type(), inference::TYPE_BF16);
  EXPECT_THAT(config.output(0).dims(), ElementsAre(-1, 8));
  EXPECT_EQ(config.parameters().at("num_experts").string_value(), "6");
}

TEST(KserveConfig, EveryRankIsAnInstanceGroup) {
  inference::ModelConfig config;
  config.set_name("m.1");
  DescribeServing(
      {.max_batch_rows = 512, .max_queue_delay_us = 70, .steps_in_flight = 2, .devices = {"cuda:3", "cpu", ""}},
      &config);
  ASSERT_EQ(config.instance_group_size(), 3);
  EXPECT_EQ(config.instance_group(0).name(), "m.1_rank0");
  EXPECT_EQ(config.instance_group(0).kind(), inference::ModelInstanceGroup::KIND_GPU);
  EXPECT_THAT(config.instance_group(0).gpus(), ElementsAre(3));
  EXPECT_EQ(config.instance_group(1).kind(), inference::ModelInstanceGroup::KIND_CPU);
  EXPECT_EQ(config.instance_group(2).kind(), inference::ModelInstanceGroup::KIND_AUTO);
  EXPECT_EQ(config.dynamic_batching().max_queue_delay_microseconds(), 70);
  EXPECT_TRUE(config.dynamic_batching().default_queue_policy().allow_timeout_override());
  EXPECT_TRUE(config.optimization().input_pinned_memory().enable());
  EXPECT_TRUE(config.optimization().eager_batching());
  EXPECT_EQ(config.parameters().at("max_batch_rows").string_value(), "512");
}

TEST(KserveDType, NamesGoBothWays) {
  for (DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(*ParseKserveDType(std::string(KserveDType(dtype))), dtype);
  }
  EXPECT_THAT(std::string(ParseKserveDType("TYPE_BF16").status().message()), HasSubstr("found 'TYPE_BF16'"));
}

TEST(KserveStatistics, CountsAndNanoseconds) {
  LayerStatistics statistics;
  statistics.RecordSuccess({.num_steps = 1, .queue_us = 10, .gate_us = 3, .plan_us = 2, .step_us = 50}, 70);
  statistics.RecordStep(100, 5, 50);
  const auto model = StatisticsOf("small.0", statistics.snapshot());
  EXPECT_EQ(model.version(), "1");
  EXPECT_EQ(model.inference_count(), 1);
  EXPECT_EQ(model.execution_count(), 1);
  EXPECT_EQ(model.inference_stats().success().ns(), 70'000);
  EXPECT_EQ(model.inference_stats().compute_input().ns(), 5'000);
  EXPECT_EQ(model.inference_stats().compute_output().ns(), 5'000);
  EXPECT_EQ(model.inference_stats().fail().count(), 0);
  ASSERT_EQ(model.batch_stats_size(), 1);
  EXPECT_EQ(model.batch_stats(0).batch_size(), 128);
  EXPECT_EQ(model.batch_stats(0).compute_infer().ns(), 50'000);
  EXPECT_GT(model.last_inference(), 0);
}

}  // namespace
}  // namespace switchyard
