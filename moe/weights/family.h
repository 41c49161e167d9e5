// What a checkpoint family (config.json's model_type) says about its MoE layers: what they compute, and under which
// names their tensors are stored.
//
// A family is one file in families/: a function from a config to its MoE blocks, and one registration.
//
//   absl::StatusOr<std::vector<MoeBlock>> MixtralBlocks(const ConfigReader& config) { … }
//   const FamilyRegistration kMixtral("mixtral", &MixtralBlocks);
//
// The functions below read the keys that families share, each with its range.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/weights/config_reader.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// Names of an expert's projections in storage, without prefix and suffix.
struct ProjectionNames {
  std::string gate = "gate_proj";
  std::string up = "up_proj";
  std::string down = "down_proj";
};

// One MoE layer and where it is stored. Under its module path P:
//   P.gate.weight                     router, [E, D]
//   P.experts.e.NAME.weight           per expert: gate and up [H, D], down [D, H]
// or all experts fused, as newer writers store any family:
//   P.experts.gate_up_proj [E, 2H, D], the gate's H rows first;  P.experts.down_proj [E, D, H]
struct MoeBlock {
  LayerSpec spec;
  std::vector<std::string> paths;  // candidates for P; the first that has a router is taken
  ProjectionNames projections;
};

using ReadBlocks = absl::StatusOr<std::vector<MoeBlock>> (*)(const ConfigReader& config);

// Made once per family, as a constant at namespace scope; registration ends before main begins.
class FamilyRegistration {
 public:
  FamilyRegistration(std::string_view model_type, ReadBlocks read_blocks);
};

// The MoE blocks of the checkpoint that `config` describes, in order. InvalidArgument for an unknown model_type
// (listing those there are), a bad key, or a model without MoE layers.
absl::StatusOr<std::vector<MoeBlock>> ReadMoeBlocks(const ConfigReader& config);

// Keys that families share.
absl::StatusOr<int> ReadNumLayers(const ConfigReader& config);                        // num_hidden_layers
absl::StatusOr<int64_t> ReadWidth(const ConfigReader& config, std::string_view key);  // 1 .. 2^20
absl::StatusOr<int> ReadTopK(const ConfigReader& config, int num_experts);            // num_experts_per_tok
absl::StatusOr<Activation> ReadActivation(const ConfigReader& config);                // hidden_act, silu if absent
// The first of `keys` there is; the others, where present, must agree.
absl::StatusOr<int> ReadNumExperts(const ConfigReader& config, const std::vector<std::string_view>& keys, int min);

}  // namespace switchyard
