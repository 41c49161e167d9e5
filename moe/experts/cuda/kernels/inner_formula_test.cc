#include "moe/experts/cuda/kernels/inner_formula.h"

#include <gtest/gtest.h>

#include <limits>

namespace switchyard {
namespace {

TEST(InnerFormula, ActivationsHaveTheirForms) {
  EXPECT_EQ(InnerFormOf({.activation = Activation::kSilu}), InnerForm::kSilu);
  EXPECT_EQ(InnerFormOf({.activation = Activation::kGelu}), InnerForm::kGelu);
  EXPECT_EQ(InnerFormOf({.activation = Activation::kRelu, .gated = false}), InnerForm::kRelu);
  EXPECT_EQ(InnerFormOf({.activation = Activation::kGeluTanh}), InnerForm::kGeluTanh);
  EXPECT_EQ(InnerFormOf({.activation = Activation::kQuickGelu, .gated = false}), InnerForm::kSwish);
}

TEST(InnerFormula, BoundsAndOffsetsTakeTheGeneralForm) {
  EXPECT_EQ(InnerFormOf({.activation = Activation::kSilu, .limit = 7}), InnerForm::kSwish);
  EXPECT_EQ(InnerFormOf({.activation = Activation::kSilu, .up_offset = 1}), InnerForm::kSwish);
}

TEST(InnerFormula, ConstantsOfTheGeneralForm) {
  const auto quick_gelu = SwishConstantsOf<double>({.activation = Activation::kQuickGelu});
  EXPECT_EQ(quick_gelu.scale, 1.702);
  EXPECT_EQ(quick_gelu.limit, std::numeric_limits<double>::infinity());
  EXPECT_EQ(quick_gelu.up_offset, 0);
  const auto clamped = SwishConstantsOf<float>({.activation = Activation::kSilu, .limit = 7, .up_offset = 1});
  EXPECT_EQ(clamped.scale, 1);
  EXPECT_EQ(clamped.limit, 7);
  EXPECT_EQ(clamped.up_offset, 1);
}

}  // namespace
}  // namespace switchyard
