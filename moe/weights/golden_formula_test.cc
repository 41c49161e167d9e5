// Checks names, layouts and formulas of every family, without any engine: a source's specs and weights, computed in
// plain float64 (plain_layer.h), must give the outputs of transformers and Tutel.
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/weights/checkpoint/safetensors.h"
#include "moe/weights/golden_folders.h"
#include "moe/weights/plain_layer.h"

namespace switchyard {
namespace {

constexpr double kMinMargin = 1e-5;  // the reference ranks in fp32

std::vector<std::string> OutputNames(const SafetensorsFile& golden) {
  std::vector<std::string> names;
  for (std::string_view name : golden.names()) {
    if (name.ends_with("output")) names.emplace_back(name);
  }
  return names;
}

// Whether a golden tensor belongs to this layer: "…layers.3.…" to "3", "encoder.block.1.…" to "encoder.1"; a bare layer
// has bare names.
bool IsOf(const std::string& tensor, const std::string& layer) {
  if (!absl::StrContains(tensor, '.')) return true;
  const std::vector<std::string> parts = absl::StrSplit(layer, '.');
  return absl::StrContains(tensor, absl::StrCat(".", parts.back(), ".")) &&
         (parts.size() == 1 || absl::StrContains(tensor, parts.front()));
}

Doubles Tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.Find(name);
  EXPECT_NE(entry, nullptr) << name;
  return ToDoubles(ConstMatrixView{entry->bytes.data(), *entry->type->element, entry->shape[0], entry->shape[1]});
}

// fp32 sums of 64 to 192 products in another order differ by far less than 1e-5 of the largest output.
void ExpectClose(const Doubles& output, const Doubles& expected, const std::vector<double>& margin) {
  ASSERT_EQ(output.size(), expected.size());
  double largest = 0;
  for (double value : expected) largest = std::max(largest, std::abs(value));
  const size_t dim = expected.size() / margin.size();
  for (size_t i = 0; i < expected.size(); ++i) {
    if (margin[i / dim] < kMinMargin) continue;
    ASSERT_NEAR(output[i], expected[i], 1e-4 * std::abs(expected[i]) + 1e-5 * largest)
        << "row " << i / dim << " column " << i % dim;
  }
}

void ExpectAnswers(const PlainLayer& layer, const Doubles& input, const Doubles& expected) {
  const PlainLayer::Routing routing = layer.Route(input);
  ExpectClose(layer.Forward(input, routing), expected, routing.margin);
}

class GoldenFormula : public testing::TestWithParam<std::string> {};

TEST_P(GoldenFormula, IsTheFamilys) {
  const std::string folder = GoldenFolder(GetParam());
  const auto source = OpenWeightSource(folder);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto golden = SafetensorsFile::Open(folder + "/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const std::vector<LayerSpec>& layers = (*source)->spec().layers;
  ASSERT_EQ(OutputNames(**golden).size(), layers.size());
  for (int layer_idx = 0; layer_idx < layers.size(); ++layer_idx) {
    SCOPED_TRACE(layers[layer_idx].name);
    const auto layer = PlainLayer::Read(**source, layer_idx);
    ASSERT_TRUE(layer.ok()) << layer.status();
    int num_compared = 0;
    for (const std::string& name : OutputNames(**golden)) {
      if (!IsOf(name, layers[layer_idx].name)) continue;
      ++num_compared;
      const Doubles input = Tensor(**golden, std::string(absl::StripSuffix(name, "output")) + "input");
      ExpectAnswers(*layer, input, Tensor(**golden, name));
      if ((*golden)->Find(name + "_of_first_token_alone") == nullptr) continue;
      const Doubles first(input.begin(), input.begin() + layers[layer_idx].hidden_dim);
      ExpectAnswers(*layer, first, Tensor(**golden, name + "_of_first_token_alone"));
    }
    EXPECT_EQ(num_compared, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenFormula, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace switchyard
