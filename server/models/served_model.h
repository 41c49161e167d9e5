// A checkpoint that a front has opened: its layers, gates and placement.
//
// A ServedModel is opened once and then constant, except for the gates, which only the dispatcher thread uses, and a
// compute type that is still open, which the first worker settles. A checkpoint that is loaded anew becomes another
// ServedModel. Users share ownership of the model; requests do so through their layers. The model thus ends, and calls
// `on_retired`, when the last request for it has been answered.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/model_id.h"
#include "moe/gating/gate.h"
#include "moe/plan/placement.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// A placement with its version, which distinguishes it from the layer's earlier and later placements. Constant, so it
// can be shared freely.
struct VersionedPlacement {
  int64_t version = 1;
  Placement placement;
};

inline std::shared_ptr<const VersionedPlacement> FirstPlacement(Placement placement) {
  return std::make_shared<const VersionedPlacement>(VersionedPlacement{1, std::move(placement)});
}

// The data of a layer that belong to the worker group: the placement of its experts, and the type and size of its
// steps.
struct LayerOnGroup {
  // New steps are planned with this placement. Each step keeps the placement with which it was planned.
  std::shared_ptr<const VersionedPlacement> placement;
  // The type of the rows in the links and of the weights on the workers. It does not change once a worker has been
  // told.
  std::atomic<DType> compute_dtype = DType::kF32;
  // The most rows of one step: as many as the links have room for, and no more than --max_batch_rows.
  int64_t max_batch_rows = std::numeric_limits<int64_t>::max();

  const Placement& current_placement() const { return placement->placement; }
};

// One MoE layer of one model.
struct ServedLayer {
  LayerId id;  // unique for the life of the front
  std::string model;
  LayerSpec spec;
  std::vector<std::unique_ptr<Gate>> gates;  // one for each gate of spec, in the same order
  LayerOnGroup on_group;
};

struct ServedModel {
  ServedModel() = default;
  ~ServedModel() {
    if (on_retired) on_retired(*this);
  }
  ServedModel(const ServedModel&) = delete;
  ServedModel& operator=(const ServedModel&) = delete;

  DType compute_dtype() const { return layers.front()->on_group.compute_dtype; }

  ModelId id;
  std::string name;
  std::string location;
  ModelSpec spec;
  uint64_t file_identity = 0;  // of its files when they were opened; 0 where workers may read other files
  std::vector<std::unique_ptr<ServedLayer>> layers;  // one for each of spec, in order, with consecutive LayerIds
  // Whether the compute type is known. An fp16 checkpoint is computed in fp16 if the workers have it, which the first
  // worker tells. Belongs to the group.
  bool is_dtype_settled = true;

  // Called when the last user lets go of the model, on that user's thread.
  std::function<void(const ServedModel&)> on_retired;
};

// The layer, with shared ownership of the whole model.
inline std::shared_ptr<ServedLayer> ShareLayer(const std::shared_ptr<ServedModel>& model, size_t layer_idx) {
  return {model, model->layers[layer_idx].get()};
}

}  // namespace switchyard
