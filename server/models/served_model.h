// A checkpoint that a front has opened: its layers, gates and placement.
//
// Opened once and then constant, but for the gates, which only the dispatcher thread uses, and for a compute type that
// waits for the first worker. A checkpoint that is loaded anew is another ServedModel. Whoever uses one shares it:
// requests through their layers, so that it ends, and tells so, when the last request for it has been answered.
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

// A placement with the number that tells it from the layer's earlier and later ones. Constant, so freely shared.
struct VersionedPlacement {
  int64_t version = 1;
  Placement placement;
};

inline std::shared_ptr<const VersionedPlacement> FirstPlacement(Placement placement) {
  return std::make_shared<const VersionedPlacement>(VersionedPlacement{1, std::move(placement)});
}

// What a worker group knows of a layer: where its experts are, and what a step of it may be.
struct LayerOnGroup {
  // Steps are planned with this placement, and each keeps the one that it was planned with.
  std::shared_ptr<const VersionedPlacement> placement;
  // The type of the rows in the links and of the weights on the workers. It does not change once a worker has been told.
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
  std::vector<std::unique_ptr<Gate>> gates;  // those of spec, in order
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
  uint64_t file_identity = 0;                        // of its files when they were opened; 0 where workers read others
  std::vector<std::unique_ptr<ServedLayer>> layers;  // those of spec, in order; LayerIds follow each other
  // Whether the compute type is known. An fp16 checkpoint's is fp16 where the workers have it, which the first of them
  // tells. The group's.
  bool is_dtype_settled = true;

  // Called when nobody uses the model any more, on the thread of whoever was the last.
  std::function<void(const ServedModel&)> on_retired;
};

// The layer with its share in the model.
inline std::shared_ptr<ServedLayer> ShareLayer(const std::shared_ptr<ServedModel>& model, size_t layer_idx) {
  return {model, model->layers[layer_idx].get()};
}

}  // namespace switchyard
