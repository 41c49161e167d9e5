// The formula between an expert's first products and its down projection, in the form that kernels take:
//
//   act(up)                                                          plain experts
//   act(gate) · up                                                   gated experts
//   swish(min(gate, limit)) · (clamp(up, ±limit) + up_offset)        gated experts, in the form kSwish
//
// Biases are added to gate and up before. kSwish is x · sigmoid(scale · x): it is used for quick-GELU always, and for
// SiLU when it is clamped. Its constants are arguments of one kernel, so the common forms need no constants and no form
// exists twice.
#pragma once

#include <cstdint>
#include <limits>

#include "moe/experts/check_layer.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

enum class InnerForm : uint8_t {
  kNone = 0,  // no activation
  kSilu = 1,
  kGelu = 2,
  kRelu = 3,
  kGeluTanh = 4,
  kSwish = 5,
};

// Constants of kSwish. F is the type that kernels compute in.
template <typename F>
struct SwishConstants {
  F scale = 1;
  F limit = std::numeric_limits<F>::infinity();
  F up_offset = 0;
};

// The form of an expert that has passed CheckExpertFormula.
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
