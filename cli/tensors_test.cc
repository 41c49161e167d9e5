#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <sstream>
#include <vector>

#include "base/tensor/convert.h"
#include "cli/compare.h"
#include "cli/table.h"
#include "cli/tensor_io.h"
#include "moe/weights/checkpoint/safetensors.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

ConstMatrixView Row(const std::vector<double>& values) {
  return {reinterpret_cast<const std::byte*>(values.data()), DType::kF64, 1, static_cast<int64_t>(values.size())};
}

std::string TempPath(const std::string& name) { return testing::TempDir() + "/" + name; }

TEST(Compare, FindsTheLargestErrors) {
  const Comparison c = Compare(Row({1, 2.5, -4, 100}), Row({1, 2, -4.25, 101}), {.relative = 0.01, .absolute = 0.1});
  EXPECT_DOUBLE_EQ(c.max_abs_error, 1);
  EXPECT_EQ(c.worst_col, 3);
  EXPECT_DOUBLE_EQ(c.max_rel_error, 0.25);
  EXPECT_EQ(c.num_elements, 4);
  EXPECT_EQ(c.num_beyond, 2) << "0.5 > 0.12 and 0.25 > 0.1425, but 1 < 1.11";
  EXPECT_FALSE(c.within_tolerance());
}

TEST(Compare, ZeroExpectedCountsInTheAbsoluteErrorOnly) {
  const Comparison c = Compare(Row({1e-6, 0}), Row({0, 0}), {});
  EXPECT_DOUBLE_EQ(c.max_abs_error, 1e-6);
  EXPECT_EQ(c.max_rel_error, 0);
  EXPECT_TRUE(c.within_tolerance());
}

TEST(Compare, NonFiniteValuesAgreeOnlyWithTheirLike) {
  EXPECT_TRUE(Compare(Row({kNaN, kInf, -kInf}), Row({kNaN, kInf, -kInf}), {}).within_tolerance());
  const std::vector<std::pair<double, double>> unlike = {{kNaN, 1}, {1, kNaN},     {kInf, 1},
                                                         {1, kInf}, {kInf, -kInf}, {kNaN, kInf}};
  for (const auto& [actual, expected] : unlike) {
    const Comparison c = Compare(Row({actual}), Row({expected}), {.relative = 1e9, .absolute = 1e9});
    EXPECT_EQ(c.num_beyond, 1) << actual << " " << expected;
    EXPECT_EQ(c.max_abs_error, kInf);
  }
}

TEST(Compare, MixedTypes) {
  HostMatrix half = HostMatrix::Allocate(DType::kBF16, 2, 2);
  const std::vector<double> values = {1, 2, 3, 4};
  ConvertElements(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), DType::kBF16, half.buffer.data(), 4);
  std::vector<double> expected = {1, 2, 3.5, 4};
  const ConstMatrixView view = {reinterpret_cast<const std::byte*>(expected.data()), DType::kF64, 2, 2};
  const Comparison c = Compare(half.view(), view, {});
  EXPECT_EQ(c.max_abs_error, 0.5);
  EXPECT_EQ(c.worst_row, 1);
  EXPECT_EQ(c.worst_col, 0);
}

TEST(TensorRef, SplitsAtTheLastColon) {
  const absl::StatusOr<TensorRef> ref = ParseTensorRef("/data/a:b.safetensors:x.y");
  ASSERT_TRUE(ref.ok());
  EXPECT_EQ(ref->path, "/data/a:b.safetensors");
  EXPECT_EQ(ref->key, "x.y");
  for (const char* bad : {"", "file.safetensors", ":key", "file:"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseTensorRef(bad).status())) << bad;
  }
}

TEST(LoadMatrix, FlattensLeadingDimensionsAndNamesWhatIsWrong) {
  const std::string path = TempPath("load.safetensors");
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7, 8};
  const auto bytes = std::as_bytes(std::span(values));
  const std::vector<TensorToWrite> tensors = {
      {"x", "F32", {2, 2, 2}, bytes}, {"ids", "I32", {8}, bytes}, {"one", "F32", {8}, bytes}};
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  const absl::StatusOr<HostMatrix> x = LoadMatrix({path, "x"});
  ASSERT_TRUE(x.ok()) << x.status();
  EXPECT_EQ(x->num_rows, 4);
  EXPECT_EQ(x->num_cols, 2);
  EXPECT_EQ(x->view().as<float>()[7], 8);
  EXPECT_EQ(LoadMatrix({path, "one"})->num_rows, 1);
  EXPECT_THAT(LoadMatrix({path, "y"}).status().message(), HasSubstr("no tensor 'y'; there are: ids one x"));
  EXPECT_THAT(LoadMatrix({path, "ids"}).status().message(), HasSubstr("'ids': expected type F64, F32, F16 or BF16"));
  EXPECT_FALSE(LoadMatrix({TempPath("absent.safetensors"), "x"}).ok());
}

TEST(SaveResult, WritesRowsAndRouting) {
  ForwardResult result;
  const std::vector<double> values = {1.5, -2};
  result.rows = ConvertTo(DType::kF16, Row(values));
  result.routing = {.num_rows = 1, .top_k = 2, .expert_idx = {3, 1}, .weight = {0.75f, 0.25f}};
  const std::string path = TempPath("save.safetensors");
  ASSERT_TRUE(SaveResult({path, "out"}, result).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->Find("out")->type->name, "F16");
  EXPECT_THAT((*file)->Find("out")->shape, ElementsAre(1, 2));
  EXPECT_EQ((*file)->Find("out.expert_ids")->type->name, "I32");
  EXPECT_THAT((*file)->Find("out.expert_weights")->shape, ElementsAre(1, 2));
  const HostMatrix back = ConvertTo(DType::kF64, LoadMatrix({path, "out"})->view());
  EXPECT_EQ(back.view().as<double>()[0], 1.5);
  EXPECT_EQ(back.view().as<double>()[1], -2);
}

TEST(Table, AlignsColumnsAndLeavesNoTrailingSpaces) {
  Table table({{"NAME"}, {"ROWS", Table::Align::kRight}, {"NOTE"}});
  table.AddRow({"a", "5", ""});
  table.AddRow({"longer", "1234567", "x"});
  std::ostringstream out;
  table.Print(out);
  EXPECT_EQ(out.str(),
            "NAME       ROWS  NOTE\n"
            "a             5\n"
            "longer  1234567  x\n");
}

}  // namespace
}  // namespace switchyard
