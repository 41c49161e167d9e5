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
  int num_layers = 1;  // with experts; of an encoder-decoder, of each stack
  // Of the families that may have shared experts; 0: none where it may be none, else expert_dim. A multiple of
  // expert_dim where the config counts experts.
  int64_t shared_dim = 0;
  int num_groups = 1;  // of DeepSeek's families
  int groups_kept = 1;
  // "fp64", "fp32", "fp16", "bf16", "fp8" (e4m3 with a scale per 128 × 128 block) or "mxfp4" (gpt_oss). The last two
  // hold for experts, the rest is then bf16.
  std::string dtype = "bf16";
  uint64_t seed = 1;  // equal options make equal files
  int64_t max_shard_bytes = int64_t{5} << 30;
};

// The config.json of such a checkpoint. InvalidArgument for an unknown family.
absl::StatusOr<nlohmann::json> MakeConfig(const CheckpointOptions& options);

// Writes the checkpoint into `folder`, which exists. InvalidArgument names the option that does not fit the family.
absl::Status WriteCheckpoint(const std::string& folder, const CheckpointOptions& options);

}  // namespace switchyard
