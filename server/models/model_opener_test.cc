#include "server/models/model_opener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

ServerOptions Options(const std::string& device, const std::string& compute_dtype = "auto") {
  ServerOptions options;
  options.models = {{"half", "synthetic:dim=8,hidden=8,experts=4,topk=2,layers=2,dtype=fp16"},
                    {"brain", "synthetic:dim=8,hidden=8,experts=4,topk=2,dtype=bf16"}};
  options.local_workers = 2;
  options.device = device;
  options.compute_dtype = compute_dtype;
  return options;
}

const std::vector<std::string> kCpuHas = {"fp64", "fp32", "bf16"};
const std::vector<std::string> kGpuHas = {"fp64", "fp32", "fp16", "bf16"};

absl::StatusOr<std::shared_ptr<ServedModel>> Open(const ServerOptions& options, int model, int num_ranks = 2) {
  return ModelOpener(options, num_ranks).Open(options.models[model]);
}

std::string ShareDType(const ServedModel& model) { return MakeShares(model, 2)[0].compute_dtype(); }

TEST(ModelOpenerTest, Fp16IsWidenedForWorkersThatDoNotHaveIt) {
  const auto half = *Open(Options("auto"), 0), brain = *Open(Options("auto"), 1);
  const LinkLayout layout = ChooseLinkLayout({half}, Options("auto"), 2, {});
  EXPECT_EQ(layout.input_bytes, 2048 * 8 * 4) << "room for either";
  ASSERT_TRUE(AgreeOnComputeDType(kCpuHas, half.get()).ok());
  ASSERT_TRUE(AgreeOnComputeDType(kCpuHas, brain.get()).ok());
  EXPECT_EQ(ShareDType(*half), "fp32");
  EXPECT_EQ(ShareDType(*brain), "bf16");
  for (const auto& layer : half->layers) EXPECT_EQ(layer->on_group.compute_dtype, DType::kF32);
}

TEST(ModelOpenerTest, TheFirstWorkerSettlesItForAll) {
  const auto half = *Open(Options("cuda"), 0);
  ASSERT_TRUE(AgreeOnComputeDType(kGpuHas, half.get()).ok());
  EXPECT_EQ(ShareDType(*half), "fp16");
  EXPECT_EQ(half->compute_dtype(), DType::kF16);
  const absl::Status refused = AgreeOnComputeDType(kCpuHas, half.get());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), AllOf(HasSubstr("model half is computed in fp16"), HasSubstr("fp64, fp32, bf16")));
  EXPECT_EQ(ShareDType(*half), "fp16");
  EXPECT_TRUE(AgreeOnComputeDType(kGpuHas, half.get()).ok());
}

TEST(ModelOpenerTest, KnownCpuWorkersNeedNoAsking) {
  EXPECT_EQ(ShareDType(**Open(Options("cpu"), 0)), "fp32");
  EXPECT_THAT(Open(Options("cpu", "fp16"), 0).status().message(), HasSubstr("--compute_dtype=fp16"));
}

TEST(ModelOpenerTest, AnExplicitTypeIsNotWidened) {
  const auto brain = *Open(Options("auto", "fp16"), 1);
  EXPECT_EQ(ChooseLinkLayout({brain}, Options("auto"), 2, {}).input_bytes, 2048 * 8 * 2);
  EXPECT_EQ(AgreeOnComputeDType(kCpuHas, brain.get()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ShareDType(*brain), "fp16");
}

TEST(ModelOpenerTest, NumbersAreNeverUsedAgain) {
  const ServerOptions options = Options("cpu");
  ModelOpener opener(options, 2);
  const auto first = *opener.Open(options.models[0]), again = *opener.Open(options.models[0]);
  EXPECT_NE(first->id, again->id);
  EXPECT_EQ(first->layers[1]->id, LayerId{1});
  EXPECT_EQ(again->layers[0]->id, LayerId{2});
  const auto shares = MakeShares(*again, 2);
  EXPECT_EQ(shares[1].model_id(), again->id.value);
  EXPECT_EQ(shares[1].first_layer_id(), 2);
  EXPECT_THAT(shares[1].layers(0).expert_idx(), testing::ElementsAre(2, 3));
}

TEST(ModelOpenerTest, AWiderModelGoesInSmallerSteps) {
  ServerOptions options = Options("cpu");
  options.models.push_back({"wide", "synthetic:dim=8192,hidden=8,experts=2,topk=1,dtype=fp32"});
  options.max_batch_rows = 1024;
  const auto narrow = *Open(options, 1), wide = *Open(options, 2);
  const LinkLayout layout = ChooseLinkLayout({narrow}, options, 2, {});
  ASSERT_TRUE(FitToLinks(layout, options.max_batch_rows, 2, narrow.get()).ok());
  EXPECT_EQ(narrow->layers[0]->on_group.max_batch_rows, 1024);
  const absl::Status tight = FitToLinks(layout, options.max_batch_rows, 2, wide.get());
  EXPECT_EQ(tight.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(tight.message(), AllOf(HasSubstr("32768 bytes"), HasSubstr("--model"), HasSubstr("--max_batch_rows")));
  // Room for rows of 16 KiB, for models that may come.
  const LinkLayout roomy = ChooseLinkLayout({narrow}, options, 2, {.may_load_more = true});
  ASSERT_TRUE(FitToLinks(roomy, options.max_batch_rows, 2, wide.get()).ok());
  EXPECT_EQ(wide->layers[0]->on_group.max_batch_rows, 512);
  EXPECT_EQ(MakeShares(*wide, 2)[0].max_batch_rows(), 512);
  ASSERT_TRUE(FitToLinks(ChooseLinkLayout({}, options, 2, {.may_load_more = true}), 1024, 2, narrow.get()).ok());
  EXPECT_EQ(narrow->layers[0]->on_group.max_batch_rows, 1024);
}

}  // namespace
}  // namespace switchyard
