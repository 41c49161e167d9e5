// Opens checkpoints for the front: reads and packs their routers, places their experts on the ranks, and says how they
// fit what does not change while the front runs: its links and its workers' compute types.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "moe/link/link_layout.h"
#include "proto/worker.pb.h"
#include "server/config/options.h"
#include "server/models/served_model.h"

namespace switchyard {

// Thread-safe.
class ModelOpener {
 public:
  ModelOpener(const ServerOptions& options, int num_ranks) : options_(options), num_ranks_(num_ranks) {}

  // Opens and validates a checkpoint. Weights of experts are not read. Errors name file, tensor or key.
  absl::StatusOr<std::shared_ptr<ServedModel>> Open(const ModelOption& option);

 private:
  const ServerOptions options_;
  const int num_ranks_;
  std::atomic<int64_t> num_models_{0};
  std::atomic<int32_t> num_layers_{0};
};

// ---- Compute types

struct ComputeDType {
  DType dtype = DType::kF32;
  bool is_settled = true;
};

// What to compute a checkpoint of a type in. CPU engines have no fp16, so "auto" widens it to fp32 where the workers
// are known to be CPUs, and leaves it open where they are not.
absl::StatusOr<ComputeDType> ChooseComputeDType(const ServerOptions& options, DType checkpoint);

// Told what the engines of a worker have. The first one settles a compute type that was left to it.
// FAILED_PRECONDITION when the worker cannot compute the model. One thread at a time for each model.
absl::Status AgreeOnComputeDType(const std::vector<std::string>& available, ServedModel* model);

// ---- What workers are told

// What each rank is told to load, by rank; the compute type is the one known now.
std::vector<worker::ModelShare> MakeShares(const ServedModel& model, int num_ranks);

// ---- Links

struct LinkWishes {
  bool may_load_more = false;  // models other than those there are
  int num_spares = 0;          // outputs beyond those of the slots
};

// The memory of a front's links: room for the largest steps of these models, and when there may be others also for rows
// of a usual width.
LinkLayout ChooseLinkLayout(const std::vector<std::shared_ptr<ServedModel>>& models, const ServerOptions& options,
                            int num_ranks, const LinkWishes& wishes);

// Sets each layer's max_batch_rows to what the links have room for. FAILED_PRECONDITION names the layer for which that
// would be too little, and what would help.
absl::Status FitToLinks(const LinkLayout& layout, int64_t max_batch_rows, int num_ranks, ServedModel* model);

}  // namespace switchyard
