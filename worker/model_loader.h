// Loads a worker's part of models while its step thread runs steps.
//
// A load is in two parts. Reading and packing weights takes long, and happens on a thread of the loader's own. What
// touches what steps use as well, which is a device's streams and buffers, happens on the step thread between steps:
// `on_step_thread` takes it there. An engine that computes on the host shares nothing with others.
//
//   loader   open the files, check that they are what the front saw     of all models that wait, then one by one:
//   step       make the engine, declare the layers, reserve memory
//   loader   read and pack the experts, report progress
//
// Every load ends with exactly one call of `done`, with the engine also after a failure once there is one: the step
// thread frees what a device holds.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/task_queue.h"
#include "proto/worker.pb.h"
#include "worker/shard.h"

namespace switchyard {

// Makes an engine of a compute type on the worker's device.
using EngineFactory = std::function<absl::StatusOr<std::unique_ptr<ExpertEngine>>(DType compute_dtype)>;

// Of the models that wait or are being loaded. Bytes are those of the weights in the compute type.
struct LoadProgress {
  struct Model {
    ModelId id;
    std::string name;
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;
  };
  std::vector<Model> models;

  int64_t bytes_done() const;
  int64_t bytes_total() const;
};

struct LoadOutcome {
  ModelId id;
  absl::Status status;              // names the model, and the layer and expert, or the bytes that are missing
  std::unique_ptr<ModelPart> part;  // of a failed load: to be freed, or null
};

struct ModelLoaderOptions {
  EngineFactory make_engine;
  // Calls a task on the step thread some time later, or drops it when the worker ends.
  std::function<void(std::function<void()> task)> on_step_thread;
  // From the loader's thread, or one of those that it starts, one at a time: when it is known how much there is, after
  // every expert, and after every model.
  std::function<void(const LoadProgress&)> progress;
  // On the loader's thread.
  std::function<void(LoadOutcome)> done;
};

// Thread-safe.
class ModelLoader {
 public:
  explicit ModelLoader(ModelLoaderOptions options);
  // Ends the load under way with an error, and does not begin those that wait; each is told all the same.
  ~ModelLoader();

  // In order, one at a time; those that come together are opened together, before the first is loaded.
  void Load(std::vector<worker::ModelShare> shares);
  // Of a model that is being loaded or waits for it: it ends as soon as can be, with an error, unless it is done.
  void Cancel(ModelId id);

  // Frees what may be freed on any thread behind what is being loaded, then calls `done`.
  void Free(std::unique_ptr<ModelPart> part, std::function<void()> done);

 private:
  struct Job;

  struct Shared;

  // On the loader's thread.
  void LoadWaiting();
  absl::Status Open(Job& job);
  absl::Status LoadOne(Job& job, const std::function<void(int64_t num_bytes)>& expert_done);
  void Finish(Job& job, const absl::Status& status);
  absl::Status CallOnStepThread(const std::function<absl::Status()>& call);
  // An error once the model is cancelled, or the loader ends.
  absl::Status CheckWanted(const Job& job);
  // On the step thread.
  absl::Status MakePart(Job& job);

  const ModelLoaderOptions options_;
  const std::shared_ptr<Shared> shared_;  // with tasks of the step thread, which may be dropped or come late

  TaskQueue tasks_;  // ends first
};

}  // namespace switchyard
