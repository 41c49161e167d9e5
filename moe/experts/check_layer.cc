#include "moe/experts/check_layer.h"

#include <cmath>
#include <string>

namespace switchyard {
namespace {

absl::Status CheckNumber(const LayerSpec& layer, const char* field, double value, bool may_be_negative) {
  if (std::isfinite(value) && (may_be_negative || value >= 0)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer.name, ": ", field, " ", value, ", expected a finite ",
                                                 may_be_negative ? "number" : "number that is not negative"));
}

}  // namespace

absl::Status CheckLayerSizes(const LayerSpec& layer, int num_slots) {
  if (layer.hidden_dim >= 1 && layer.expert_dim >= 1 && num_slots >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer.name, ": hidden_dim ", layer.hidden_dim,
                                                 ", expert_dim ", layer.expert_dim, ", ", num_slots,
                                                 " slots; expected positive widths and no negative count"));
}

absl::Status CheckExpertFormula(const LayerSpec& layer) {
  const ExpertSpec& expert = layer.expert;
  SY_RETURN_IF_ERROR(CheckNumber(layer, "limit", expert.limit, /*may_be_negative=*/false));
  SY_RETURN_IF_ERROR(CheckNumber(layer, "up_offset", expert.up_offset, /*may_be_negative=*/true));
  if (!IsClamped(expert)) return absl::OkStatus();
  const char* field = expert.limit != 0 ? "limit" : "up_offset";
  if (!expert.gated) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer.name, ": ", field, ": only gated experts can have one, and these are plain"));
  }
  if (expert.activation == Activation::kSilu || expert.activation == Activation::kQuickGelu) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("layer ", layer.name, ": ", field, " with activation ",
                                               std::string(ActivationName(expert.activation)),
                                               "; available with silu and quick_gelu"));
}

}  // namespace switchyard
