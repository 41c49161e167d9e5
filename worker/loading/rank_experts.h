// The experts that this rank holds: for each model, an engine with this rank's part of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/model_id.h"
#include "moe/experts/expert_engine.h"
#include "proto/worker.pb.h"

namespace switchyard {

// This rank's part of one model.
struct ModelPart {
  struct Layer {
    int64_t hidden_dim = 0;
    int num_slots = 0;
    std::vector<uint64_t> digests;  // of the experts that were read, by slot (expert_digest.h)
  };

  ModelId id() const { return ModelId{share.model_id()}; }
  // The front's number of the first layer; the other layers follow it.
  LayerId first_layer() const { return LayerId{share.first_layer_id()}; }

  worker::ModelShare share;    // what the front asked for
  uint64_t file_identity = 0;  // of the files, as this host saw them, that it was read from
  std::vector<Layer> layers;   // by the engine's layer number
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
  // The same for the parts of all models.
  std::vector<std::unique_ptr<ModelPart>> RemoveAll();

  // Finds a layer by the front's number. `part` is null if no model here has the layer.
  Place Find(LayerId layer) const;

  int64_t weight_bytes() const;

  // Not OK once the device is lost to this process.
  absl::Status CheckDevice() const;

 private:
  std::map<LayerId, std::unique_ptr<ModelPart>> parts_;  // by first layer
};

}  // namespace switchyard
