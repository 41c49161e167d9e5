// Loads, reloads and unloads models while the front runs, and holds the table of what is served.
//
// Only checkpoints that the front knows by name can be loaded: those of --model, and the folders of --model_repository
// that hold a config.json, which are listed anew before every change. A change names a checkpoint, or one layer of it
// (NAME.LAYER). Unloading a layer ends its serving, and frees the checkpoint if no other layer of it is served. Loading
// a layer serves it again, and loads the checkpoint if it is not loaded. Loading a layer or a checkpoint that is served
// opens the checkpoint anew.
//
// Two layers never have one name NAME.LAYER: a load that would bring that about fails. Folders whose names are not
// UTF-8 are not known, because no message can name them.
//
// Changes of one checkpoint are made one at a time, in order; those of different checkpoints do not wait for each
// other. A new model replaces an old one atomically, once every worker has it. The old model answers the requests that
// were submitted to it and is then freed; the checkpoint's next change waits for that. After a change that fails, the
// same models and layers are served as before. Unloading a checkpoint, or a layer, calls off the loads of it that are
// not done. A change is not begun when its caller is gone by then.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/logging/line_budget.h"
#include "base/logging/logging.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/task_queue.h"
#include "server/config/options.h"
#include "server/models/model_table.h"

namespace switchyard {

// Opens a checkpoint for serving. Errors say why it cannot be opened.
using OpenModelFn = std::function<absl::StatusOr<std::shared_ptr<ServedModel>>(const ModelOption& option)>;

// Loads models to the workers and frees them there. The host may call the callbacks from any thread, also before the
// method returns; once it is ending it calls none.
class ModelHost {
 public:
  virtual ~ModelHost() = default;

  // Brings the model to every worker. After a failure the workers free their parts of it; the caller still calls
  // `Unload`, which reports when they are gone. The host keeps no reference to the model after it has called `done`.
  virtual void Load(const std::shared_ptr<ServedModel>& model, std::function<void(absl::Status)> done) = 0;
  // Runs a model's first steps, before it is served. Calls `should_stop` again and again, and ends with its error when
  // it returns one. Also returns the error of a step that fails.
  virtual absl::Status WarmUp(const std::shared_ptr<ServedModel>& /*model*/,
                              const std::function<absl::Status()>& /*should_stop*/) {
    return absl::OkStatus();
  }
  // No new request can reach the model any more. Requests that it has already are still answered, as long as the
  // workers can have the model. Called before its Unload.
  virtual void Release(const ServedModel& /*model*/) {}
  // Frees the workers' parts of a model that no request uses any more.
  virtual void Unload(const ServedModel& model, std::function<void()> done) = 0;
};

// Thread-safe.
class ModelRepository {
 public:
  // `served` are the models that are already loaded or are being loaded. `folder` is the value of --model_repository
  // and may be empty. `host` outlives the repository, and models may outlive both.
  ModelRepository(const std::vector<std::shared_ptr<ServedModel>>& served, std::string folder, OpenModelFn open,
                  ModelHost* host);
  // Calls Stop.
  ~ModelRepository();

  std::shared_ptr<const ModelTable> table() const;

  // Each returns at once. `done` is called exactly once, when the change is made or has failed: on a thread of the
  // repository, or within the call after Stop. NOT_FOUND for a name that is not known, CANCELLED for a load that was
  // called off and for a change whose caller is gone. `is_wanted` says whether the caller is still there; it may be
  // null, and is not called after `done`.
  using DoneFn = std::function<void(absl::Status)>;
  using IsWantedFn = std::function<bool()>;
  void Load(const std::string& name, DoneFn done, IsWantedFn is_wanted = nullptr);
  void Unload(const std::string& name, DoneFn done, IsWantedFn is_wanted = nullptr);

  // Lists the folder anew and calls `done` with the table: on a thread of the repository, or within the call after
  // Stop. Calls that come while others wait share one listing.
  using TableFn = std::function<void(const ModelTable& table)>;
  void List(TableFn done);

  // Takes a model that the workers have lost out of the table, and returns it so that its requests can be failed.
  // Either a change that replaces the model is under way, or a change has taken it out already and some of its requests
  // are not answered yet. Returns null when the model is not in use any more.
  std::shared_ptr<ServedModel> Abandon(ModelId id);

  // Ends the current changes, where they wait for workers or requests, and the changes queued behind them with
  // UNAVAILABLE; refuses new ones.
  void Stop();

 private:
  // Tracks the models that the host has: from the moment a model is given to the host until the workers have freed all
  // of it, which may be after the repository has ended.
  class Residence;

  struct Change;
  // The changes of one checkpoint.
  struct Queue;

  void AddChange(std::shared_ptr<Change> change);
  // On the thread that lists folders: finds the checkpoint that the change is of, and puts it into its queue.
  void Assign(const std::shared_ptr<Change>& change);

  // On the thread of the checkpoint's changes.
  absl::Status Make(const Change& change);
  absl::Status CheckWanted(const Change& change) const;
  absl::Status LoadNow(const Change& change);
  absl::Status Reload(const KnownModel& known, const Change& change);
  // Opens the model, checks that it has the change's layer, and loads it on every worker. It is not served yet.
  absl::StatusOr<std::shared_ptr<ServedModel>> Bring(const KnownModel& known, const Change& change);
  // Fails when a layer of the model has the name of one of another checkpoint that is loaded, or is being loaded. From
  // then on the names are the model's, until EndClaim.
  absl::Status ClaimNames(const std::shared_ptr<ServedModel>& model);
  void EndClaim(const std::string& checkpoint);
  absl::Status UnloadNow(const Change& change);

  // Logs a change, each kind once a second for each model, because callers ask for changes. Thread-safe.
  void Tell(const KnownModel& model, spdlog::level::level_enum level, absl::string_view what,
            const std::string& details);

  void ListFolder();
  std::set<ModelId> LoadedModels() const;
  absl::StatusOr<KnownModel> FindModel(const std::string& checkpoint) const;
  // Thread-safe. Calls `edit` with the table's lock held.
  void EditTable(const std::function<void(std::vector<KnownModel>&)>& edit);
  // Returns whether the checkpoint is still known.
  bool Edit(const std::string& checkpoint, const std::function<void(KnownModel&)>& edit);
  // Releases a model that is not in the table any more, or never will be. Thread-safe; call without the table's lock.
  void Release(const std::shared_ptr<ServedModel>& model);

  const std::string folder_;
  const OpenModelFn open_;
  const std::shared_ptr<Residence> residence_;  // shared with models, which may outlive the repository

  LineBudgets told_{1};

  mutable Mutex mu_;
  std::shared_ptr<const ModelTable> table_ ABSL_GUARDED_BY(mu_);
  std::map<ModelId, std::weak_ptr<ServedModel>> released_ ABSL_GUARDED_BY(mu_);    // some have ended already
  std::map<std::string, std::weak_ptr<ServedModel>> claims_ ABSL_GUARDED_BY(mu_);  // models being loaded, by checkpoint
  std::vector<TableFn> listings_ ABSL_GUARDED_BY(mu_);                             // that wait

  std::map<std::string, std::unique_ptr<Queue>> queues_;  // by checkpoint; only Assign uses it
  TaskQueue assigning_;                                   // destroyed first
};

}  // namespace switchyard
