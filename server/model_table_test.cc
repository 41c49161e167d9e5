#include "server/model_table.h"

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

std::string WelcomeDType(const ModelTable& models, int model) {
  return models.WelcomeFor(0, 2, 16).models(model).compute_dtype();
}

TEST(ModelTableTest, Fp16IsWidenedForWorkersThatDoNotHaveIt) {
  auto models = *ModelTable::Load(Options("auto"), 2);
  EXPECT_EQ(models->max_row_bytes(), 8 * 4) << "room for either";
  ASSERT_TRUE(models->AgreeOnComputeDTypes(kCpuHas).ok());
  EXPECT_EQ(WelcomeDType(*models, 0), "fp32");
  EXPECT_EQ(WelcomeDType(*models, 1), "bf16");
  for (int layer = 0; layer < 2; ++layer) EXPECT_EQ(models->layers()[layer]->compute_dtype, DType::kF32);
  EXPECT_EQ(models->layers()[2]->compute_dtype, DType::kBF16);
}

TEST(ModelTableTest, TheFirstWorkerSettlesItForAll) {
  auto models = *ModelTable::Load(Options("cuda"), 2);
  ASSERT_TRUE(models->AgreeOnComputeDTypes(kGpuHas).ok());
  EXPECT_EQ(WelcomeDType(*models, 0), "fp16");
  EXPECT_EQ(models->compute_dtype(models->models()[0]), DType::kF16);
  const absl::Status refused = models->AgreeOnComputeDTypes(kCpuHas);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), AllOf(HasSubstr("model half is computed in fp16"), HasSubstr("fp64, fp32, bf16")));
  EXPECT_EQ(WelcomeDType(*models, 0), "fp16");
  EXPECT_TRUE(models->AgreeOnComputeDTypes(kGpuHas).ok());
}

TEST(ModelTableTest, KnownCpuWorkersNeedNoAsking) {
  EXPECT_EQ(WelcomeDType(**ModelTable::Load(Options("cpu"), 2), 0), "fp32");
  EXPECT_THAT(ModelTable::Load(Options("cpu", "fp16"), 2).status().message(), HasSubstr("--compute_dtype=fp16"));
}

TEST(ModelTableTest, AnExplicitTypeIsNotWidened) {
  auto models = *ModelTable::Load(Options("auto", "fp16"), 2);
  EXPECT_EQ(models->max_row_bytes(), 8 * 2);
  EXPECT_EQ(models->AgreeOnComputeDTypes(kCpuHas).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(WelcomeDType(*models, 1), "fp16");
}

}  // namespace
}  // namespace switchyard
