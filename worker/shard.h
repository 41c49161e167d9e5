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

// Bytes are those of the weights in the compute type.
struct LoadProgress {
  struct Model {
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;
  };
  int64_t experts_done = 0;
  int64_t experts_total = 0;
  std::vector<Model> models;  // in the front's order
};

// Called once all models are open and then after every expert, by one of the loading threads at a time.
using LoadProgressFn = std::function<void(const LoadProgress&)>;

// Not thread-safe.
class Shard {
 public:
  // Where a layer's experts are.
  struct Layer {
    ExpertEngine* engine = nullptr;
    LayerId engine_layer;  // its number inside that engine
    int64_t hidden_dim = 0;
    int num_slots = 0;
  };

  // Opens every model's weights, checks that they are the ones the front saw (fingerprint), and then loads this rank's
  // experts, model after model, having made room first for them and for steps of the group's largest size. Errors name
  // the model, layer and expert, or the bytes that are missing.
  static absl::StatusOr<std::unique_ptr<Shard>> Load(const worker::Welcome& welcome, const EngineFactory& make_engine,
                                                     const LoadProgressFn& progress);

  // Null for a layer the front never announced.
  const Layer* FindLayer(LayerId layer) const;
  int64_t weight_bytes() const;

  // Not OK once the device is lost to this process.
  absl::Status CheckDevice() const;

  // Lanes that every engine has; 0 when they compute on the host.
  int num_lanes() const;

 private:
  struct OpenModel;

  absl::Status LoadModel(const OpenModel& model, int64_t max_batch_rows, const EngineFactory& make_engine,
                         const std::function<void(int64_t num_bytes)>& expert_done);

  std::vector<std::unique_ptr<ExpertEngine>> engines_;
  std::vector<Layer> layers_;  // by LayerId, over all models in the front's order
};

}  // namespace switchyard
