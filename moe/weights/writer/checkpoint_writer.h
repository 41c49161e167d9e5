// Writes synthetic checkpoints of any family and size in published form (config.json, one file or an index of shards),
// to try real shapes without real weights. Only the MoE layers are written. Tensors are made piece by piece: a file of
// any size needs a few megabytes of memory.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"

namespace switchyard {

struct CheckpointOptions {
  std::string family = "mixtral";  // model_type; "tutel" is written with ffn experts
  int64_t hidden_dim = 64;
  int64_t expert_dim = 96;
  int num_experts = 8;
  int top_k = 2;
  int num_layers = 1;  // layers with experts; in an encoder-decoder, those of each stack
  // Width of the shared experts, in families that may have them. 0 means none where the family may have none, else
  // expert_dim. Must be a multiple of expert_dim where the config counts shared experts.
  int64_t shared_dim = 0;
  int num_groups = 1;  // groups of experts, in DeepSeek's families
  int groups_kept = 1;
  // "fp64", "fp32", "fp16", "bf16", "fp8" (e4m3 with a scale per 128 × 128 block) or "mxfp4" (gpt_oss). The last two
  // apply to the experts; other weights are then bf16.
  std::string dtype = "bf16";
  uint64_t seed = 1;  // equal options make equal files
  int64_t max_shard_bytes = int64_t{5} << 30;
};

// The config.json of such a checkpoint. InvalidArgument for an unknown family.
absl::StatusOr<nlohmann::json> MakeConfig(const CheckpointOptions& options);

// Writes the checkpoint into `folder`, which exists. InvalidArgument names the option that does not fit the family.
absl::Status WriteCheckpoint(const std::string& folder, const CheckpointOptions& options);

}  // namespace switchyard
