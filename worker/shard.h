// A rank's share of the models: one engine per model, loaded from the checkpoint.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/experts/expert_engine.h"
#include "proto/worker.pb.h"

namespace switchyard {

// Makes an engine of a compute type on the worker's device.
using EngineFactory = std::function<absl::StatusOr<std::unique_ptr<ExpertEngine>>(DType compute_dtype)>;

// Called now and then from the loading thread.
using LoadProgressFn = std::function<void(int64_t experts_done, int64_t experts_total)>;

// Not thread-safe.
class Shard {
 public:
  // Where a layer's experts are.
  struct Layer {
    ExpertEngine* engine = nullptr;
    LayerId engine_layer;  // its number inside that engine
    int64_t hidden_dim = 0;
    int num_slots = 0;
    int top_k = 0;
  };

  // Opens every model's weights, checks that they are the ones the front saw (fingerprint), and loads this rank's
  // experts. Errors name the model, layer and expert.
  static absl::StatusOr<std::unique_ptr<Shard>> Load(const worker::Welcome& welcome, const EngineFactory& make_engine,
                                                     const LoadProgressFn& progress);

  // Null for a layer the front never announced.
  const Layer* FindLayer(LayerId layer) const;
  int64_t weight_bytes() const;

 private:
  absl::Status LoadModel(const worker::ModelShare& model, const EngineFactory& make_engine,
                         const std::function<void()>& expert_done);

  std::vector<std::unique_ptr<ExpertEngine>> engines_;
  std::vector<Layer> layers_;  // by LayerId, over all models in the front's order
};

}  // namespace switchyard
