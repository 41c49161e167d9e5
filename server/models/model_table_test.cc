#include "server/models/model_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/models/testing.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const ModelOption kTwo = {"two", "synthetic:dim=8,hidden=8,experts=4,topk=2,layers=2"};
const ModelOption kDotted = {"two.1", "synthetic:dim=8,hidden=8,experts=4,topk=2,layers=1"};

TEST(ModelTable, LayersThatAreNotServedAreUnavailable) {
  KnownModel two = Served(kTwo);
  two.layers[0].is_served = false;
  const ModelTable table({two, {.name = "later", .location = "", .reason = "not loaded"}});
  ASSERT_EQ(table.layers().size(), 1u);
  EXPECT_EQ(*table.Find("two", "1"), table.layers()[0]->layer);
  EXPECT_EQ(table.Find("two", "0").status(), absl::UnavailableError("model 'two.0' is unloaded"));
  EXPECT_EQ(table.Find("later", "0").status(), absl::UnavailableError("model 'later.0' is not loaded"));
  const absl::Status layer = table.Find("two", "2").status(), model = table.Find("three", "0").status();
  EXPECT_TRUE(absl::IsNotFound(layer) && absl::IsNotFound(model));
  EXPECT_THAT(std::string(layer.message()), HasSubstr("it has: 0, 1"));
  EXPECT_THAT(std::string(model.message()), HasSubstr("there are: two, later"));
}

TEST(ModelTable, ErrorsFitTheMetadataOfAnAnswer) {
  const std::string endless(1 << 20, 'x');
  std::vector<KnownModel> many;
  for (int i = 0; i < 300; ++i) {
    many.push_back({.name = absl::StrCat(i, std::string(200, 'n')), .location = "", .reason = "not loaded"});
  }
  const absl::Status model = ModelTable(many).Find(endless, "0").status();
  EXPECT_THAT(std::string(model.message()), AllOf(HasSubstr("'xxx"), HasSubstr("there are: 0nnn")));
  EXPECT_THAT(std::string(model.message()), HasSubstr("…, … and 280 more"));
  EXPECT_LT(model.message().size(), 3000u);
  EXPECT_LT(ModelTable(many).Find(many[0].name, endless).status().message().size(), 500u);
  EXPECT_LT(ModelTable({Served(kTwo)}).Find("two", endless).status().message().size(), 500u);
  EXPECT_EQ(CutText("…"), "…");
  for (size_t num_before = 98; num_before <= 100; ++num_before) {
    const std::string before(num_before, 'x');
    EXPECT_EQ(CutText(absl::StrCat(before, "ä…")), absl::StrCat(before, num_before == 98 ? "ä…" : "…"));
  }
}

TEST(ModelTable, ALayerKeepsItsModel) {
  std::shared_ptr<ServedLayer> layer;
  bool is_retired = false;
  {
    KnownModel two = Served(kTwo);
    two.loaded->on_retired = [&](const ServedModel& model) {
      EXPECT_EQ(model.name, "two");
      is_retired = true;
    };
    layer = *ModelTable({std::move(two)}).Find("two", "1");
  }
  EXPECT_FALSE(is_retired);
  EXPECT_EQ(layer->spec.name, "1");
  layer = nullptr;
  EXPECT_TRUE(is_retired);
}

TEST(ModelTable, TwoLayersOfOneNameAreNoticed) {
  const auto one = OpenModel(kTwo), other = OpenModel(kDotted);
  EXPECT_TRUE(CheckLayerNames(*one, *other).ok());
  other->spec.layers[0].name = "x";  // two.1.x
  one->spec.layers[1].name = "1.x";
  const absl::Status same = CheckLayerNames(*one, *other);
  EXPECT_TRUE(absl::IsFailedPrecondition(same)) << same;
  EXPECT_THAT(std::string(same.message()),
              testing::HasSubstr("layer '1.x' of model 'two' and layer 'x' of model 'two.1' would both be 'two.1.x'"));
}

TEST(ModelTable, NamesAreResolvedToCheckpointsFirst) {
  const ModelTable table({Served(kTwo), Served(kDotted)});
  const auto expect_target = [&](const std::string& name, size_t model_idx, std::optional<std::string> layer) {
    const auto target = table.Resolve(name);
    ASSERT_TRUE(target.has_value()) << name;
    EXPECT_EQ(target->model_idx, model_idx) << name;
    EXPECT_EQ(target->layer, layer) << name;
  };
  expect_target("two", 0, std::nullopt);
  expect_target("two.0", 0, "0");
  expect_target("two.1", 1, std::nullopt);
  expect_target("two.1.0", 1, "0");
  expect_target("two.9.9", 0, "9.9");
  for (const char* name : {"", "tw", "two2", "../two", "/two"}) EXPECT_FALSE(table.Resolve(name).has_value()) << name;
}

}  // namespace
}  // namespace switchyard
