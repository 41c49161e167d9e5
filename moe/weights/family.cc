#include "moe/weights/family.h"

#include <map>

#include "absl/strings/str_join.h"
#include "moe/weights/quoted.h"

namespace switchyard {
namespace {

constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxExperts = 1 << 16;

// Filled before main begins, only read afterwards.
std::map<std::string, ReadBlocks, std::less<>>& Families() {
  static auto* const families = new std::map<std::string, ReadBlocks, std::less<>>();
  return *families;
}

std::string KnownFamilies() {
  return absl::StrJoin(Families(), ", ", [](std::string* out, const auto& family) { out->append(family.first); });
}

}  // namespace

FamilyRegistration::FamilyRegistration(std::string_view model_type, ReadBlocks read_blocks) {
  Families().emplace(model_type, read_blocks);
}

absl::StatusOr<std::vector<MoeBlock>> ReadMoeBlocks(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const std::string model_type, config.Text("model_type"));
  const auto family = Families().find(model_type);
  if (family == Families().end()) {
    return config.Error("model_type",
                        absl::StrCat("found ", Quoted(model_type), ", expected one of ", KnownFamilies()));
  }
  SY_ASSIGN_OR_RETURN(std::vector<MoeBlock> blocks, family->second(config));
  if (blocks.empty()) return config.Error("model_type", "found a model without MoE layers, expected at least one");
  return blocks;
}

absl::StatusOr<int> ReadNumLayers(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const int64_t num_layers, config.Int("num_hidden_layers", 0, kMaxLayers));
  return static_cast<int>(num_layers);
}

absl::StatusOr<int64_t> ReadWidth(const ConfigReader& config, std::string_view key) {
  return config.Int(key, 1, kMaxWidth);
}

absl::StatusOr<int> ReadTopK(const ConfigReader& config, int num_experts) {
  SY_ASSIGN_OR_RETURN(const int64_t top_k, config.Int("num_experts_per_tok", 1, num_experts));
  return static_cast<int>(top_k);
}

absl::StatusOr<Activation> ReadActivation(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const std::string name, config.Text("hidden_act", "silu"));
  const absl::StatusOr<Activation> activation = ParseActivation(name);
  if (activation.ok()) return activation;
  return config.Error("hidden_act", absl::StrCat("found ", Quoted(name), ", expected silu, gelu or relu"));
}

absl::StatusOr<int> ReadNumExperts(const ConfigReader& config, const std::vector<std::string_view>& keys, int min) {
  std::string_view first = keys.front();
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    if (config.Has(*key)) first = *key;
  }
  SY_ASSIGN_OR_RETURN(const int64_t num_experts, config.Int(first, min, kMaxExperts));
  for (std::string_view key : keys) {
    SY_ASSIGN_OR_RETURN(const int64_t other, config.Int(key, min, kMaxExperts, num_experts));
    if (other == num_experts) continue;
    return config.Error(key, absl::StrCat("found ", other, ", expected ", num_experts, " as in ", std::string(first)));
  }
  return static_cast<int>(num_experts);
}

}  // namespace switchyard
