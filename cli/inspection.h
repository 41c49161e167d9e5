// What a checkpoint's MoE layers are and what serving them takes, without loading a weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

struct InspectOptions {
  int num_ranks = 1;
  std::string compute_dtype = "auto";  // the checkpoint's own
  int64_t max_batch_rows = 4096;       // of a step, all ranks together: the server's default
};

// What one of the ranks will hold.
struct RankShare {
  int64_t num_experts = 0;  // over all layers, shared ones included
  int64_t weight_bytes = 0;
};

struct Inspection {
  ModelSpec model;
  DType compute_dtype = DType::kF32;
  std::vector<int64_t> layer_bytes;  // weights of one layer's experts, each once
  std::vector<RankShare> ranks;
  // Rows, expert inputs and outputs of the largest step on one rank, all rows being sent to it: an upper estimate.
  int64_t working_bytes = 0;

  int64_t total_bytes() const;
};

// Opens a checkpoint folder (or "synthetic:…") and checks it as a server would. Errors name file, tensor or key.
absl::StatusOr<Inspection> Inspect(const std::string& location, const InspectOptions& options);

// The fewest ranks of `bytes_per_rank` memory each that hold the model; 0 when no number does, since one expert of
// every layer and the working memory are too much already.
int FewestRanks(const Inspection& inspection, int64_t bytes_per_rank);

}  // namespace switchyard
