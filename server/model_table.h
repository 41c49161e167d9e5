// The models a front serves: their layers, gates and placement. Built once at start; constant afterwards, but for the
// gates, which only the dispatcher thread uses.
#pragma once

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
  DType compute_dtype = DType::kF32;
  Placement placement;
  std::unique_ptr<Gate> gate;
};

struct ServedModel {
  std::string name;
  std::string location;
  ModelSpec spec;
  DType compute_dtype = DType::kF32;
  int first_layer = 0;  // LayerId of its first layer; the others follow
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

  // NotFound lists the models, or the model's layers, that there are.
  absl::StatusOr<ServedLayer*> Find(const std::string& model, const std::string& layer) const;

  // What rank `rank` is told to load.
  worker::Welcome WelcomeFor(int rank, int num_ranks, int64_t max_batch_rows) const;

  // The widest row of any layer in its compute type, in bytes.
  int64_t max_row_bytes() const;

 private:
  absl::Status AddModel(const ModelOption& option, const std::string& compute_dtype, int num_ranks,
                        const std::shared_ptr<LinearContext>& gate_context);

  std::vector<ServedModel> models_;
  std::vector<std::unique_ptr<ServedLayer>> layers_;  // by LayerId
};

// The type the CPU engine computes in for a checkpoint's type: fp16 is widened to fp32, which oneDNN has.
absl::StatusOr<DType> ChooseComputeDType(const std::string& wanted, DType checkpoint);

}  // namespace switchyard
