// Loads a worker's part of models while its step thread runs steps.
//
// A load has two kinds of work. Reading and packing weights takes long, so it runs on the loader's own thread. Work
// that touches resources shared with steps (a device's streams and buffers) runs on the step thread between steps;
// `on_step_thread` takes it there. Engines that compute on the host share nothing with each other.
//
//   loader thread   for all models of one call: open the files, check that the front opened the same ones, and look for
//                   parts that were kept of them; those are loaded
//   step thread     free the parts that were kept of nothing that is loaded now
//   then, for one model after the other:
//   step thread     make the engine, declare the layers, reserve memory
//   loader thread   read and pack the experts, report progress
//
// There are a few loader threads, so that a model that takes long does not keep others waiting. Models of one call are
// loaded by one of them.
//
// Every load ends with exactly one call of `done`. A failed load passes on the engine too if it was made, because the
// step thread must free device memory.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/task_queue.h"
#include "proto/worker.pb.h"
#include "worker/loading/kept_parts.h"
#include "worker/loading/rank_experts.h"

namespace switchyard {

// Makes an engine of a compute type on the worker's device.
using EngineFactory = std::function<absl::StatusOr<std::unique_ptr<ExpertEngine>>(DType compute_dtype)>;

// Progress of the models that wait or are being loaded. Bytes count weights in the compute type.
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
  std::unique_ptr<ModelPart> part;  // null, or to be freed, after a failed load
  bool was_kept = false;            // nothing was read
};

struct ModelLoaderOptions {
  // Bytes of memory that the weights must fit in; 0 for any, because the engine checks its own memory.
  int64_t memory_limit = 0;
  EngineFactory make_engine;
  // Runs a task on the step thread some time later, or drops it when the worker ends.
  std::function<void(std::function<void()> task)> on_step_thread;
  // Called once the number of bytes to load is known, and after every expert. A loader's thread, or a thread that it
  // starts, calls it, one at a time.
  std::function<void(const LoadProgress&)> progress;
  // Called on a loader's thread.
  std::function<void(LoadOutcome)> done;
};

// Thread-safe.
class ModelLoader {
 public:
  explicit ModelLoader(ModelLoaderOptions options);
  // Ends the current loads with an error and does not begin the waiting ones. `done` is called for each of them.
  ~ModelLoader();

  // Loads these models in order, one at a time. They are opened together before the first of them is loaded. Takes the
  // parts that fit them out of `kept`, unless that is null, and frees all others that are there; parts that are still
  // there when the loader ends stay. `kept` outlives the loader.
  void Load(std::vector<worker::ModelShare> shares, KeptParts* kept = nullptr);
  // Ends the load of a model that waits or is being loaded as soon as possible, with an error, unless it is done
  // already.
  void Cancel(ModelId id);

  // Frees `part` on a thread that loads nothing, then calls `done`. For parts that any thread may free.
  void Free(std::unique_ptr<ModelPart> part, std::function<void()> done);

 private:
  static constexpr int kNumLoaders = 3;

  struct Job;

  struct Shared;

  // These run on a loader's thread.
  void LoadAll(const std::vector<std::shared_ptr<Job>>& jobs, KeptParts* kept);
  // Opens the jobs' models. Ends the jobs that fail, and those of which a part was kept; returns the others.
  std::vector<std::shared_ptr<Job>> OpenAll(const std::vector<std::shared_ptr<Job>>& jobs, KeptParts* kept);
  void FreeRest(KeptParts* kept);
  void Report(const Job& job, int64_t num_bytes);
  void ForgetProgress(const std::vector<std::shared_ptr<Job>>& jobs);
  absl::Status Open(Job& job);
  absl::Status LoadOne(Job& job, const std::function<void(int64_t num_bytes)>& expert_done);
  void Finish(Job& job, const absl::Status& status);
  absl::Status CallOnStepThread(const std::function<absl::Status()>& call);
  // An error once the model is cancelled or the loader ends.
  absl::Status CheckWanted(const Job& job);
  // Runs on the step thread.
  absl::Status MakePart(Job& job);

  const ModelLoaderOptions options_;
  const std::shared_ptr<Shared> shared_;  // also owned by tasks on the step thread, which may be dropped or run late

  Mutex progress_mu_;
  LoadProgress progress_ ABSL_GUARDED_BY(progress_mu_);

  // Declared last because they must be destroyed first.
  TaskQueue frees_;
  std::array<TaskQueue, kNumLoaders> loaders_;
};

}  // namespace switchyard
