// What becomes of the first products of an expert before its down projection, as kernels are told it:
//
//   act(up)                                                                    of plain experts
//   act(gate) · up                                                             of gated ones
//   swish(min(gate, limit)) · (clamp(up, ±limit) + up_offset)                  of gated ones, in the form kSwish
//
// with biases added to gate and up before. kSwish is x · sigmoid(scale · x): quick-GELU always, SiLU when it is
// clamped. Its constants are arguments of one kernel, so that the common forms stay without and no form exists twice.
#pragma once

#include <cstdint>
#include <limits>

#include "moe/experts/check_layer.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

enum class InnerForm : uint8_t {
  kNone = 0,  // the product as it is
  kSilu = 1,
  kGelu = 2,
  kRelu = 3,
  kGeluTanh = 4,
  kSwish = 5,
};

// F is the type that kernels compute in.
template <typename F>
struct SwishConstants {
  F scale = 1;
  F limit = std::numeric_limits<F>::infinity();
  F up_offset = 0;
};

// Of an expert that has passed CheckExpertFormula.
inline InnerForm InnerFormOf(const ExpertSpec& expert) {
  if (IsClamped(expert)) return InnerForm::kSwish;
  switch (expert.activation) {
    case Activation::kSilu:
      return InnerForm::kSilu;
    case Activation::kGelu:
      return InnerForm::kGelu;
    case Activation::kRelu:
      return InnerForm::kRelu;
    case Activation::kGeluTanh:
      return InnerForm::kGeluTanh;
    case Activation::kQuickGelu:
      break;
  }
  return InnerForm::kSwish;
}

template <typename F>
SwishConstants<F> SwishConstantsOf(const ExpertSpec& expert) {
  SwishConstants<F> constants;
  if (expert.activation == Activation::kQuickGelu) constants.scale = static_cast<F>(1.702);
  if (expert.limit != 0) constants.limit = static_cast<F>(expert.limit);
  constants.up_offset = static_cast<F>(expert.up_offset);
  return constants;
}

}  // namespace switchyard
