// Describes a checkpoint's MoE layers and the memory that serving them takes, without loading any weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

struct InspectOptions {
  int num_ranks = 1;
  std::string compute_dtype = "auto";  // "auto": the checkpoint's own type
  int64_t max_batch_rows = 4096;       // rows of a step over all ranks together; the server's default
};

// The part of the model that one rank will hold.
struct RankShare {
  int64_t num_experts = 0;  // over all layers, shared ones included
  int64_t weight_bytes = 0;
};

struct Inspection {
  ModelSpec model;
  DType compute_dtype = DType::kF32;
  std::vector<int64_t> layer_bytes;  // for each layer: the weights of its experts, each counted once
  std::vector<RankShare> ranks;
  // Memory that one rank needs for the rows, expert inputs and expert outputs of the largest step. An upper estimate,
  // because it assumes that all rows are sent to this rank.
  int64_t working_bytes = 0;

  int64_t total_bytes() const;
};

// Opens a checkpoint folder (or "synthetic:…") and checks it as a server would. Errors name the file, tensor or key.
absl::StatusOr<Inspection> Inspect(const std::string& location, const InspectOptions& options);

// The fewest ranks, with `bytes_per_rank` of memory each, that can hold the model. 0 when no number of ranks can,
// because one expert of every layer and the working memory already exceed one rank's memory.
int FewestRanks(const Inspection& inspection, int64_t bytes_per_rank);

}  // namespace switchyard
