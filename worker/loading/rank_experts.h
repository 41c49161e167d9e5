// The experts that this rank holds: for each model, an engine with this rank's part of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/model_id.h"
#include "moe/experts/expert_engine.h"

namespace switchyard {

// This rank's part of one model.
struct ModelPart {
  struct Layer {
    int64_t hidden_dim = 0;
    int num_slots = 0;
    std::vector<uint64_t> digests;  // of the experts that were read, by slot (expert_digest.h)
  };

  ModelId id;
  std::string name;
  LayerId first_layer;        // the front's number of the first layer; the other layers follow it
  std::vector<Layer> layers;  // by the engine's layer number
  int64_t max_batch_rows = 0;
  std::unique_ptr<ExpertEngine> engine;
};

// This rank's parts of all models. Not thread-safe.
class RankExperts {
 public:
  // Where a layer's experts are.
  struct Place {
    const ModelPart* part = nullptr;
    LayerId engine_layer;  // its number inside the part's engine
    const ModelPart::Layer& layer() const { return part->layers[engine_layer.value]; }
    ExpertEngine& engine() const { return *part->engine; }
  };

  void Add(std::unique_ptr<ModelPart> part);
  // Removes and returns a model's part; null when there is no such model. No step may be using it.
  std::unique_ptr<ModelPart> Remove(ModelId id);

  // Finds a layer by the front's number. `part` is null if no model here has the layer.
  Place Find(LayerId layer) const;

  int64_t weight_bytes() const;

  // Not OK once the device is lost to this process.
  absl::Status CheckDevice() const;

 private:
  std::map<LayerId, std::unique_ptr<ModelPart>> parts_;  // by first layer
};

}  // namespace switchyard
