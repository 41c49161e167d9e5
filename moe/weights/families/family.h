// Describes the MoE layers of a checkpoint family (config.json's model_type): what they compute, and under which names
// their tensors are stored.
//
// A family is one file in families/: a function from a config to its MoE blocks, and one registration.
//
//   absl::StatusOr<std::vector<MoeBlock>> MixtralBlocks(const ConfigReader& config) { … }
//   const FamilyRegistration kMixtral("mixtral", &MixtralBlocks);
//
// The functions below read the keys that families share, each with its range.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/weights/checkpoint/config_reader.h"
#include "moe/weights/families/storage_names.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// One MoE layer and where it is stored.
struct MoeBlock {
  LayerSpec spec;
  std::vector<std::string> paths;  // candidates for P; the first that has a router is taken
  StorageNames names;
};

using ReadBlocks = absl::StatusOr<std::vector<MoeBlock>> (*)(const ConfigReader& config);

// Made once per family, as a constant at namespace scope; registration ends before main begins.
class FamilyRegistration {
 public:
  FamilyRegistration(std::string_view model_type, ReadBlocks read_blocks);
};

// The MoE blocks of the checkpoint that `config` describes, in order. InvalidArgument for an unknown model_type
// (listing the known ones), a bad key, or a model without MoE layers.
absl::StatusOr<std::vector<MoeBlock>> ReadMoeBlocks(const ConfigReader& config);

// Every known model_type, sorted.
std::vector<std::string> KnownFamilies();

// Keys that families share. Widths are from 1 to 2^20.
absl::StatusOr<int64_t> ReadWidth(const ConfigReader& config, std::string_view key);
absl::StatusOr<int> ReadTopK(const ConfigReader& config, std::string_view key, int num_experts);
// transformers' names of activations; silu when the key is absent.
absl::StatusOr<Activation> ReadActivation(const ConfigReader& config, std::string_view key);
// The value of the first of `keys` that is present; the others, where present, must agree.
absl::StatusOr<int> ReadNumExperts(const ConfigReader& config, const std::vector<std::string_view>& keys, int min);
absl::StatusOr<int> ReadNumLayers(const ConfigReader& config, std::string_view key);
inline absl::StatusOr<int> ReadNumLayers(const ConfigReader& config) {
  return ReadNumLayers(config, "num_hidden_layers");
}

// Where a family keeps the sizes of a layer.
struct SizeKeys {
  std::vector<std::string_view> num_experts = {"num_local_experts"};
  std::string_view hidden_dim = "hidden_size";
  std::string_view expert_dim = "intermediate_size";
  std::string_view top_k = "num_experts_per_tok";
  std::string_view activation = "hidden_act";
};
// A layer with these sizes; everything else keeps LayerSpec's defaults.
absl::StatusOr<LayerSpec> ReadSizes(const ConfigReader& config, const SizeKeys& keys);

// Normalization::kSum when the key says so.
absl::StatusOr<Normalization> ReadSumNormalization(const ConfigReader& config, std::string_view key,
                                                   std::optional<bool> fallback);

// Adds a shared expert of inner width `shared_dim` to the layer, as experts of width expert_dim. 0 adds none.
void AddShared(int64_t shared_dim, LayerSpec* spec);

// `block` once for every layer in [0, num_layers) that has experts, named by its index, which also replaces "#" in its
// paths.
std::vector<MoeBlock> RepeatBlock(const MoeBlock& block, int num_layers,
                                  const std::function<bool(int layer)>& has_experts);
inline std::vector<MoeBlock> RepeatBlock(const MoeBlock& block, int num_layers) {
  return RepeatBlock(block, num_layers, [](int) { return true; });
}

}  // namespace switchyard
