// Loads, reloads and unloads models while the front runs, and holds the table of what is served.
//
// Only checkpoints that the front knows by name can be loaded: those of --model, and the folders of --model_repository
// that hold a config.json, which are listed anew before every change. A change names a checkpoint, or one layer of it
// (NAME.LAYER): unloading a layer ends its serving, and frees the checkpoint when it was the last one; loading one
// serves it again, and loads the checkpoint when it is not there. Loading what is served opens the checkpoint anew.
//
// Changes are made one at a time, in order, on a thread of their own. A new model takes an old one's place in one
// moment, when every worker has it. The old one answers what was submitted to it and is then freed; the change after
// waits for that. A change that fails leaves what was served as it was.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/task_queue.h"
#include "server/config/options.h"
#include "server/models/model_table.h"

namespace switchyard {

// Opens a checkpoint for serving; errors say what is wrong with it.
using OpenModelFn = std::function<absl::StatusOr<std::shared_ptr<ServedModel>>(const ModelOption& option)>;

// Where models are loaded to. Callbacks may come from any thread, also before the call returns, and not at all once the
// host is ending.
class ModelHost {
 public:
  virtual ~ModelHost() = default;

  // Brings the model to every worker. After a failure nothing of it will be left: `Unload` still tells when. Keeps no
  // share of the model once `done` was called.
  virtual void Load(const std::shared_ptr<ServedModel>& model, std::function<void(absl::Status)> done) = 0;
  // Runs a model's first steps, before it is served. Returns what `should_stop`, asked all along, says if not OK, or a
  // step's failure.
  virtual absl::Status WarmUp(const std::shared_ptr<ServedModel>& /*model*/,
                              const std::function<absl::Status()>& /*should_stop*/) {
    return absl::OkStatus();
  }
  // Nobody can ask for the model any more; what was asked of it is answered where workers can have it. Comes before its
  // Unload.
  virtual void Release(const ServedModel& /*model*/) {}
  // Frees what the workers have of a model that nobody uses any more.
  virtual void Unload(const ServedModel& model, std::function<void()> done) = 0;
};

// Thread-safe.
class ModelRepository {
 public:
  // `served` are loaded already, or are about to be; `folder`, of --model_repository, may be empty. `host` outlives the
  // repository, and models may outlive both.
  ModelRepository(const std::vector<std::shared_ptr<ServedModel>>& served, std::string folder, OpenModelFn open,
                  ModelHost* host);
  // Stops.
  ~ModelRepository();

  std::shared_ptr<const ModelTable> table() const;

  // Each returns at once; `done` is called exactly once, on a thread of the repository's, when the change is made or
  // has failed. NOT_FOUND for a name that is not known.
  using DoneFn = std::function<void(absl::Status)>;
  void Load(const std::string& name, DoneFn done);
  void Unload(const std::string& name, DoneFn done);

  // Takes a model out of the table that the workers do not have any more; the change that replaces it is under way, or
  // one has taken it out already and what was asked of it is not answered. Null when nobody uses it.
  std::shared_ptr<ServedModel> Abandon(ModelId id);

  // Ends the change that is being made, where it waits for workers or requests, and those that wait for it, with
  // UNAVAILABLE; refuses new ones.
  void Stop();

 private:
  // What the host has: models from being given to it until nothing is left of them, which may be after the repository
  // has ended.
  class Residence;

  // The changes' thread's, unless it says otherwise.
  void AddChange(DoneFn done, std::function<absl::Status()> change);
  absl::Status LoadNow(const std::string& name);
  absl::Status Reload(const KnownModel& known, const ModelTable::Target& target);
  // The model is opened, at every worker, and has the target's layer; it is not served yet.
  absl::StatusOr<std::shared_ptr<ServedModel>> Bring(const KnownModel& known, const ModelTable::Target& target);
  absl::Status UnloadNow(const std::string& name);

  void ListFolder();
  absl::StatusOr<ModelTable::Target> FindTarget(const std::string& name);
  std::set<ModelId> LoadedModels() const;
  // From any thread; calls `edit` with the table's lock.
  void EditTable(const std::function<void(std::vector<KnownModel>&)>& edit);
  void Edit(size_t model_idx, const std::function<void(KnownModel&)>& edit);
  // Of a model that is not in the table any more, or will not be; from any thread, without the table's lock.
  void Release(const std::shared_ptr<ServedModel>& model);

  const std::string folder_;
  const OpenModelFn open_;
  const std::shared_ptr<Residence> residence_;  // shared with models, which may end later

  mutable Mutex mu_;
  std::shared_ptr<const ModelTable> table_ ABSL_GUARDED_BY(mu_);
  std::map<ModelId, std::weak_ptr<ServedModel>> released_ ABSL_GUARDED_BY(mu_);  // some of which have ended

  TaskQueue changes_;  // ends first
};

}  // namespace switchyard
