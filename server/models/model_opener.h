// Opens checkpoints for the front: reads and packs their routers, places their experts on the ranks, and fits them to
// the things that do not change while the front runs: its links and its workers' compute types.
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

  // Opens and validates a checkpoint. Does not read the weights of experts. Errors name the file, tensor or key.
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

// Chooses the type in which a checkpoint of type `checkpoint` is computed. CPU engines have no fp16. With "auto" an
// fp16 checkpoint is therefore computed in fp32 if the workers are known to be CPUs; otherwise its type stays open.
absl::StatusOr<ComputeDType> ChooseComputeDType(const ServerOptions& options, DType checkpoint);

// `available` are the compute types of a worker's engines. The first worker settles a compute type that is still open.
// FAILED_PRECONDITION when the worker cannot compute the model. One thread at a time for each model.
absl::Status AgreeOnComputeDType(const std::vector<std::string>& available, ServedModel* model);

// ---- Messages to workers

// Tells each rank which experts to load; indexed by rank. The compute type is the model's current one.
std::vector<worker::ModelShare> MakeShares(const ServedModel& model, int num_ranks);

// ---- Links

struct LinkWishes {
  bool may_load_more = false;  // whether other models may be loaded later
  int num_spares = 0;          // outputs in addition to one per slot
};

// Chooses the memory layout of the front's links: room for the largest steps of these models and, if other models may
// be loaded later, also for rows of a usual width.
LinkLayout ChooseLinkLayout(const std::vector<std::shared_ptr<ServedModel>>& models, const ServerOptions& options,
                            int num_ranks, const LinkWishes& wishes);

// Sets each layer's max_batch_rows to the number of rows that fit in the links, at most `max_batch_rows`.
// FAILED_PRECONDITION names a layer for which too few rows fit, and says how to make room.
absl::Status FitToLinks(const LinkLayout& layout, int64_t max_batch_rows, int num_ranks, ServedModel* model);

}  // namespace switchyard
