// The models a front serves: their layers, gates and placement. Built once at start; constant afterwards, but for the
// gates, which only the dispatcher thread uses, and for compute types that wait for the first worker.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "moe/base/ids.h"
#include "moe/gating/gate.h"
#include "moe/plan/placement.h"
#include "moe/weights/layer_spec.h"
#include "proto/worker.pb.h"
#include "server/options.h"

namespace switchyard {

// One MoE layer of one model.
struct ServedLayer {
  LayerId id;
  std::string model;
  LayerSpec spec;
  // Of the rows in the links and the weights on the workers. Does not change once a worker has joined.
  std::atomic<DType> compute_dtype = DType::kF32;
  Placement placement;
  std::vector<std::unique_ptr<Gate>> gates;  // those of spec, in order
};

struct ServedModel {
  std::string name;
  std::string location;
  ModelSpec spec;
  int first_layer = 0;         // LayerId of its first layer; the others follow
  uint64_t file_identity = 0;  // of its files when they were opened; 0 where workers read others
  // Whether the compute type is known. An fp16 checkpoint's is fp16 where the workers have it, which the first of them
  // tells.
  bool is_dtype_settled = true;
};

class ModelTable {
 public:
  // Opens and validates every model, reads and packs its routers, and places its experts on `num_ranks` ranks. Weights
  // of experts are not read. Errors name the model.
  static absl::StatusOr<std::unique_ptr<ModelTable>> Load(const ServerOptions& options, int num_ranks);

  ModelTable() = default;
  // Layers are in LayerId order, model after model.
  ModelTable(std::vector<ServedModel> models, std::vector<std::unique_ptr<ServedLayer>> layers)
      : models_(std::move(models)), layers_(std::move(layers)) {}

  const std::vector<ServedModel>& models() const { return models_; }
  const std::vector<std::unique_ptr<ServedLayer>>& layers() const { return layers_; }

  DType compute_dtype(const ServedModel& model) const { return layers_[model.first_layer]->compute_dtype; }

  // Told what the engines of a worker have before it joins. The first worker settles the compute types that were left
  // to it. FAILED_PRECONDITION names the model that the worker cannot compute. One thread at a time.
  absl::Status AgreeOnComputeDTypes(const std::vector<std::string>& available);

  // NotFound lists the models, or the model's layers, that there are.
  absl::StatusOr<ServedLayer*> Find(const std::string& model, const std::string& layer) const;

  // What rank `rank` is told to load.
  worker::Welcome WelcomeFor(int rank, int num_ranks, int64_t max_batch_rows) const;

  // The widest row of any layer in its compute type, or the widest that may still become it, in bytes.
  int64_t max_row_bytes() const;

 private:
  absl::Status AddModel(const ModelOption& option, const ServerOptions& options, int num_ranks,
                        const std::shared_ptr<LinearContext>& gate_context);
  void Settle(ServedModel& model, DType compute_dtype);

  std::vector<ServedModel> models_;
  std::vector<std::unique_ptr<ServedLayer>> layers_;  // by LayerId
};

struct ComputeDType {
  DType dtype = DType::kF32;
  bool is_settled = true;
};

// What to compute a checkpoint of a type in. CPU engines have no fp16, so "auto" widens it to fp32 where the workers
// are known to be CPUs, and leaves it open where they are not.
absl::StatusOr<ComputeDType> ChooseComputeDType(const ServerOptions& options, DType checkpoint);

}  // namespace switchyard
