#include "moe/weights/families/family.h"

#include <map>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "moe/weights/checkpoint/quoted.h"

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

struct ActivationOf {
  std::string_view name;
  Activation activation;
};

// As transformers' ACT2FN has them. gelu_new, gelu_fast and gelu_pytorch_tanh are one formula written three ways.
constexpr ActivationOf kActivations[] = {
    {"silu", Activation::kSilu},
    {"swish", Activation::kSilu},
    {"gelu", Activation::kGelu},
    {"gelu_new", Activation::kGeluTanh},
    {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"gelu_fast", Activation::kGeluTanh},
    {"quick_gelu", Activation::kQuickGelu},
    {"relu", Activation::kRelu},
};

std::string KnownActivations() {
  return absl::StrJoin(kActivations, ", ",
                       [](std::string* out, const ActivationOf& known) { out->append(known.name); });
}

}  // namespace

FamilyRegistration::FamilyRegistration(std::string_view model_type, ReadBlocks read_blocks) {
  Families().emplace(model_type, read_blocks);
}

absl::StatusOr<std::vector<MoeBlock>> ReadMoeBlocks(const ConfigReader& config) {
  SY_ASSIGN_OR_RETURN(const std::string model_type, config.Text("model_type"));
  const auto family = Families().find(model_type);
  if (family == Families().end()) {
    return config.Error("model_type", absl::StrCat("found ", Quoted(model_type), ", expected one of ",
                                                   absl::StrJoin(KnownFamilies(), ", ")));
  }
  SY_ASSIGN_OR_RETURN(std::vector<MoeBlock> blocks, family->second(config));
  if (blocks.empty()) return config.Error("model_type", "found a model without MoE layers, expected at least one");
  return blocks;
}

std::vector<std::string> KnownFamilies() {
  std::vector<std::string> names;
  for (const auto& [name, read_blocks] : Families()) names.push_back(name);
  return names;
}

absl::StatusOr<int> ReadNumLayers(const ConfigReader& config, std::string_view key) {
  SY_ASSIGN_OR_RETURN(const int64_t num_layers, config.Int(key, 0, kMaxLayers));
  return static_cast<int>(num_layers);
}

absl::StatusOr<int64_t> ReadWidth(const ConfigReader& config, std::string_view key) {
  return config.Int(key, 1, kMaxWidth);
}

absl::StatusOr<int> ReadTopK(const ConfigReader& config, std::string_view key, int num_experts) {
  SY_ASSIGN_OR_RETURN(const int64_t top_k, config.Int(key, 1, num_experts));
  return static_cast<int>(top_k);
}

absl::StatusOr<Activation> ReadActivation(const ConfigReader& config, std::string_view key) {
  SY_ASSIGN_OR_RETURN(const std::string name, config.Text(key, "silu"));
  for (const ActivationOf& known : kActivations) {
    if (name == known.name) return known.activation;
  }
  return config.Error(key, absl::StrCat("found ", Quoted(name), ", expected one of ", KnownActivations()));
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

absl::StatusOr<LayerSpec> ReadSizes(const ConfigReader& config, const SizeKeys& keys) {
  LayerSpec spec;
  SY_ASSIGN_OR_RETURN(spec.num_experts, ReadNumExperts(config, keys.num_experts, 1));
  SY_ASSIGN_OR_RETURN(spec.hidden_dim, ReadWidth(config, keys.hidden_dim));
  SY_ASSIGN_OR_RETURN(spec.expert_dim, ReadWidth(config, keys.expert_dim));
  SY_ASSIGN_OR_RETURN(spec.gate.top_k, ReadTopK(config, keys.top_k, spec.num_experts));
  SY_ASSIGN_OR_RETURN(spec.expert.activation, ReadActivation(config, keys.activation));
  return spec;
}

absl::StatusOr<Normalization> ReadSumNormalization(const ConfigReader& config, std::string_view key,
                                                   std::optional<bool> fallback) {
  SY_ASSIGN_OR_RETURN(const bool normalize, config.Bool(key, fallback));
  return normalize ? Normalization::kSum : Normalization::kNone;
}

void AddShared(int64_t shared_dim, LayerSpec* spec) {
  spec->shared_dim = shared_dim;
  spec->num_shared = static_cast<int>((shared_dim + spec->expert_dim - 1) / spec->expert_dim);
}

std::vector<MoeBlock> RepeatBlock(const MoeBlock& block, int num_layers,
                                  const std::function<bool(int layer)>& has_experts) {
  std::vector<MoeBlock> blocks;
  for (int layer = 0; layer < num_layers; ++layer) {
    if (!has_experts(layer)) continue;
    blocks.push_back(block);
    blocks.back().spec.name = absl::StrCat(layer);
    for (std::string& path : blocks.back().paths) path = absl::StrReplaceAll(path, {{"#", absl::StrCat(layer)}});
  }
  return blocks;
}

}  // namespace switchyard
