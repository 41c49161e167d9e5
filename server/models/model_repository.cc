#include "server/models/model_repository.h"

#include <google/protobuf/stubs/common.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "base/clock.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kNeverLoaded[] = "not loaded";
constexpr char kUnloaded[] = "unloaded";

absl::Status Stopped() { return absl::UnavailableError("the server is draining: its models stay as they are"); }

absl::Status CalledOff() {
  return absl::CancelledError("the load was called off, because the model is to be unloaded");
}

absl::Status UnknownModel(const std::string& name, const std::vector<KnownModel>& models) {
  return absl::NotFoundError(
      absl::StrCat("no model '", CutText(name),
                   "' is known here: expected one of --model or a folder of --model_repository with a config.json, or "
                   "a layer of one (NAME.LAYER); there are: ",
                   ShortListOf(models)));
}

absl::Status UnknownLayer(const std::string& model, const std::string& layer, const std::string& there) {
  return absl::NotFoundError(
      absl::StrCat("model '", model, "' has no MoE layer '", CutText(layer), "'; it has: ", there));
}

bool HasLayer(const ServedModel& model, const std::string& layer) {
  return std::any_of(model.spec.layers.begin(), model.spec.layers.end(),
                     [&](const LayerSpec& each) { return each.name == layer; });
}

// Protobuf could not send an index in which this name stands.
bool CanBeNamed(const std::string& name, const std::string& folder) {
  if (google::protobuf::internal::IsStructurallyValidUTF8(name)) return true;
  static LineBudget budget(1);
  LogWithin(&budget, spdlog::level::warn,
            "--model_repository={}: the folder {} is left out because its name is not UTF-8; rename it", folder,
            absl::CHexEscape(name));
  return false;
}

// The folders of checkpoints right below `folder`, by name.
std::vector<ModelOption> CheckpointsIn(const std::string& folder) {
  std::vector<ModelOption> found;
  std::error_code error;
  // A range-for would throw if reading the folder failed after the first entry.
  for (fs::directory_iterator entry(folder, error); entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    std::error_code ignored;
    if (name.front() != '.' && fs::exists(entry->path() / "config.json", ignored) && CanBeNamed(name, folder)) {
      found.push_back({name, entry->path()});
    }
  }
  static LineBudget budget(1);
  if (error) LogWithin(&budget, spdlog::level::warn, "--model_repository={}: {}", folder, error.message());
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return found;
}

}  // namespace

// ---- Models on workers ----------------------------------------------------------------------------------------------

class ModelRepository::Residence : public std::enable_shared_from_this<Residence> {
 public:
  explicit Residence(ModelHost* host) : host_(host) {}

  // Registers a model that the host has, or is about to get. When no request or table uses the model any more, the host
  // is told to unload it.
  void Watch(const std::shared_ptr<ServedModel>& model) {
    {
      MutexLock lock(&mu_);
      resident_[model->id] = model->name;
    }
    model->on_retired = [self = shared_from_this()](const ServedModel& retired) { self->Retire(retired); };
  }

  // Waits until every worker has the model, or the load is called off.
  absl::Status Bring(const std::shared_ptr<ServedModel>& model, const std::atomic<bool>& is_called_off) {
    Watch(model);
    auto result = std::make_shared<std::optional<absl::Status>>();  // guarded by mu_
    ModelHost* host = nullptr;
    {
      MutexLock lock(&host_mu_);
      if (host_ == nullptr) return Stopped();
      host = host_;
      host->Load(model, [self = shared_from_this(), result](absl::Status status) {
        MutexLock done(&self->mu_);
        *result = std::move(status);
        self->changed_.SignalAll();
      });
    }
    {
      MutexLock lock(&mu_);
      while (!result->has_value() && !stopping_ && !is_called_off) changed_.Wait(&mu_);
      if (!result->has_value()) return stopping_ ? Stopped() : CalledOff();
      if (!(*result)->ok()) return **result;
    }
    // host_mu_ is not held because this may take long. That is safe because the host outlives the threads of the
    // changes.
    return host->WarmUp(model, [&] {
      if (stopping()) return Stopped();
      return is_called_off ? CalledOff() : absl::OkStatus();
    });
  }

  // Waits until the host has no models of this checkpoint except those in `kept`.
  absl::Status WaitForRetirements(const std::string& checkpoint, const std::set<ModelId>& kept) {
    MutexLock lock(&mu_);
    const auto is_retired = [&](const auto& resident) {
      return resident.second != checkpoint || kept.contains(resident.first);
    };
    while (!stopping_ && !std::all_of(resident_.begin(), resident_.end(), is_retired)) changed_.Wait(&mu_);
    return stopping_ ? Stopped() : absl::OkStatus();
  }

  // Sets the flag that Bring looks at.
  void CallOff(std::atomic<bool>* is_called_off) {
    MutexLock lock(&mu_);
    is_called_off->store(true);
    changed_.SignalAll();
  }

  void Release(const ServedModel& model) {
    MutexLock lock(&host_mu_);
    if (host_ != nullptr) host_->Release(model);
  }

  void Stop() {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  bool stopping() {
    MutexLock lock(&mu_);
    return stopping_;
  }

  // The host is ending: it is not called after this.
  void Detach() {
    MutexLock lock(&host_mu_);
    host_ = nullptr;
  }

 private:
  // Runs on the thread that used the model last.
  void Retire(const ServedModel& model) {
    MutexLock lock(&host_mu_);
    if (host_ == nullptr) return;
    host_->Unload(model, [self = shared_from_this(), id = model.id] {
      MutexLock gone(&self->mu_);
      self->resident_.erase(id);
      self->changed_.SignalAll();
    });
  }

  // Held while the host is called, so that it cannot end meanwhile.
  Mutex host_mu_ ABSL_ACQUIRED_BEFORE(mu_);  // the host may call back at once
  ModelHost* host_ ABSL_GUARDED_BY(host_mu_);

  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::map<ModelId, std::string> resident_ ABSL_GUARDED_BY(mu_);  // with the checkpoint's name
};

struct ModelRepository::Change {
  const std::string name;  // as the caller gave it
  const bool is_load;
  const DoneFn done;
  const IsWantedFn is_wanted;
  // Set by Assign.
  std::string checkpoint;
  std::optional<std::string> layer;
  std::atomic<bool> is_called_off{false};  // a load only
};

struct ModelRepository::Queue {
  std::vector<std::weak_ptr<Change>> loads;  // that are not done, and others
  TaskQueue changes;
};

// ---- Changes --------------------------------------------------------------------------------------------------------

ModelRepository::ModelRepository(const std::vector<std::shared_ptr<ServedModel>>& served, std::string folder,
                                 OpenModelFn open, ModelHost* host)
    : folder_(std::move(folder)), open_(std::move(open)), residence_(std::make_shared<Residence>(host)) {
  std::vector<KnownModel> known;
  for (const auto& model : served) {
    residence_->Watch(model);
    known.push_back({.name = model->name, .location = model->location});
    known.back().Serve(model, [](const std::string&) { return true; });
  }
  table_ = std::make_shared<ModelTable>(std::move(known));
  ListFolder();
}

ModelRepository::~ModelRepository() {
  Stop();
  residence_->Detach();
}

std::shared_ptr<const ModelTable> ModelRepository::table() const {
  MutexLock lock(&mu_);
  return table_;
}

void ModelRepository::Stop() { residence_->Stop(); }

void ModelRepository::Load(const std::string& name, DoneFn done, IsWantedFn is_wanted) {
  AddChange(std::shared_ptr<Change>(new Change{name, /*is_load=*/true, std::move(done), std::move(is_wanted), {}, {}}));
}

void ModelRepository::Unload(const std::string& name, DoneFn done, IsWantedFn is_wanted) {
  AddChange(
      std::shared_ptr<Change>(new Change{name, /*is_load=*/false, std::move(done), std::move(is_wanted), {}, {}}));
}

void ModelRepository::AddChange(std::shared_ptr<Change> change) {
  if (residence_->stopping()) return change->done(Stopped());
  assigning_.Add([this, change = std::move(change)] { Assign(change); });
}

void ModelRepository::List(TableFn done) {
  if (residence_->stopping()) return done(*table());
  bool is_first = false;
  {
    MutexLock lock(&mu_);
    is_first = listings_.empty();
    listings_.push_back(std::move(done));
  }
  if (!is_first) return;
  assigning_.Add([this] {
    std::vector<TableFn> waiting;
    {
      MutexLock lock(&mu_);
      waiting.swap(listings_);
    }
    ListFolder();
    const auto now = table();
    for (const TableFn& each : waiting) each(*now);
  });
}

void ModelRepository::Assign(const std::shared_ptr<Change>& change) {
  ListFolder();
  const auto known = table();
  const auto target = known->Resolve(change->name);
  if (!target.has_value()) return change->done(UnknownModel(change->name, known->models()));
  change->checkpoint = known->models()[target->model_idx].name;
  change->layer = target->layer;
  std::unique_ptr<Queue>& queue = queues_[change->checkpoint];
  if (queue == nullptr) queue = std::make_unique<Queue>();
  std::erase_if(queue->loads, [](const auto& load) { return load.expired(); });
  if (change->is_load) {
    queue->loads.push_back(change);
  } else {
    for (const auto& each : queue->loads) {
      const auto load = each.lock();
      const bool is_of_this = load != nullptr && (!change->layer.has_value() || load->layer == change->layer);
      if (is_of_this) residence_->CallOff(&load->is_called_off);
    }
  }
  queue->changes.Add([this, change] { change->done(Make(*change)); });
}

absl::Status ModelRepository::CheckWanted(const Change& change) const {
  if (change.is_called_off) return CalledOff();
  if (change.is_wanted == nullptr || change.is_wanted()) return absl::OkStatus();
  return absl::CancelledError(absl::StrCat("the caller that wanted to ", change.is_load ? "load " : "unload ",
                                           change.name, " was gone before its turn came"));
}

absl::Status ModelRepository::Make(const Change& change) {
  SY_RETURN_IF_ERROR(CheckWanted(change));
  // A model that the previous change replaced takes memory until its last request is answered.
  SY_RETURN_IF_ERROR(residence_->WaitForRetirements(change.checkpoint, LoadedModels()));
  SY_RETURN_IF_ERROR(CheckWanted(change));
  return change.is_load ? LoadNow(change) : UnloadNow(change);
}

std::set<ModelId> ModelRepository::LoadedModels() const {
  const std::shared_ptr<const ModelTable> now = table();
  std::set<ModelId> loaded;
  for (const KnownModel& model : now->models()) {
    if (model.loaded != nullptr) loaded.insert(model.loaded->id);
  }
  return loaded;
}

void ModelRepository::EditTable(const std::function<void(std::vector<KnownModel>&)>& edit) {
  std::shared_ptr<const ModelTable> old, now;  // destroyed outside the lock, because models may be destroyed with them
  {
    MutexLock lock(&mu_);
    std::vector<KnownModel> models = table_->models();
    edit(models);
    now = std::make_shared<const ModelTable>(std::move(models));
    old = std::exchange(table_, now);
  }
  for (const KnownModel& before : old->models()) {
    const bool stays = std::any_of(now->models().begin(), now->models().end(),
                                   [&](const KnownModel& model) { return model.loaded == before.loaded; });
    if (before.loaded != nullptr && !stays) Release(before.loaded);
  }
}

void ModelRepository::Release(const std::shared_ptr<ServedModel>& model) {
  {
    MutexLock lock(&mu_);
    std::erase_if(released_, [](const auto& each) { return each.second.expired(); });
    released_[model->id] = model;
  }
  residence_->Release(*model);
}

bool ModelRepository::Edit(const std::string& checkpoint, const std::function<void(KnownModel&)>& edit) {
  bool is_known = false;
  EditTable([&](std::vector<KnownModel>& models) {
    for (KnownModel& model : models) {
      if (model.name != checkpoint) continue;
      is_known = true;
      edit(model);
    }
  });
  return is_known;
}

std::shared_ptr<ServedModel> ModelRepository::Abandon(ModelId id) {
  std::shared_ptr<ServedModel> abandoned;
  EditTable([&](std::vector<KnownModel>& models) {
    for (KnownModel& model : models) {
      if (model.loaded == nullptr || model.loaded->id != id) continue;
      abandoned = std::exchange(model.loaded, nullptr);
      for (KnownModel::Layer& layer : model.layers) layer.is_served = false;
      model.reason = kNeverLoaded;
    }
  });
  if (abandoned != nullptr) return abandoned;
  MutexLock lock(&mu_);
  const auto released = released_.find(id);
  return released == released_.end() ? nullptr : released->second.lock();
}

void ModelRepository::ListFolder() {
  if (folder_.empty()) return;
  const std::vector<ModelOption> found = CheckpointsIn(folder_);
  EditTable([&](std::vector<KnownModel>& models) {
    const auto is_among = [](const auto& all, const std::string& name) {
      return std::any_of(all.begin(), all.end(), [&](const auto& each) { return each.name == name; });
    };
    // Checkpoints that are no longer in the folder are forgotten, unless they are still loaded, or being changed.
    std::erase_if(models, [&](const KnownModel& model) {
      return model.is_from_folder && model.loaded == nullptr && model.change == KnownModel::Change::kNone &&
             !is_among(found, model.name);
    });
    for (const ModelOption& option : found) {
      if (is_among(models, option.name)) continue;
      models.push_back(
          {.name = option.name, .location = option.location, .reason = kNeverLoaded, .is_from_folder = true});
    }
  });
}

absl::StatusOr<KnownModel> ModelRepository::FindModel(const std::string& checkpoint) const {
  const auto known = table();
  for (const KnownModel& model : known->models()) {
    if (model.name == checkpoint) return model;
  }
  return UnknownModel(checkpoint, known->models());
}

void ModelRepository::Tell(const KnownModel& model, spdlog::level::level_enum level, absl::string_view what,
                           const std::string& details) {
  LogWithin(told_.Of(absl::StrCat(model.name, ": ", what)), level, "model {}: {}{}", model.name, what, details);
}

absl::Status ModelRepository::LoadNow(const Change& change) {
  SY_ASSIGN_OR_RETURN(KnownModel known, FindModel(change.checkpoint));
  const std::optional<std::string>& layer = change.layer;
  if (layer.has_value() && known.loaded != nullptr && known.FindLayer(*layer) >= 0 && !known.serves(*layer)) {
    Tell(known, spdlog::level::info, "a layer is served again", absl::StrCat(": ", *layer));
    Edit(known.name, [&](KnownModel& model) { model.layers[model.FindLayer(*layer)].is_served = true; });
    return absl::OkStatus();
  }
  known.loaded = nullptr;  // because the change waits for the old model's end, it must not keep it alive
  return Reload(known, change);
}

absl::Status ModelRepository::Reload(const KnownModel& known, const Change& change) {
  const SteadyTime begin = Clock::Real().Now();
  Tell(known, spdlog::level::info, "loading", absl::StrCat(" ", known.location));
  if (!Edit(known.name, [](KnownModel& model) { model.change = KnownModel::Change::kLoading; })) {
    return FindModel(known.name).status();
  }
  const absl::StatusOr<std::shared_ptr<ServedModel>> fresh = Bring(known, change);
  Edit(known.name, [&](KnownModel& model) {
    model.change = KnownModel::Change::kNone;
    if (fresh.ok()) {
      model.Serve(*fresh, [&](const std::string& layer) {
        return !change.layer.has_value() || layer == *change.layer || known.serves(layer);
      });
    } else {
      model.reason = absl::StrCat(model.loaded == nullptr ? "not loaded" : "not reloaded", ": ",
                                  std::string(fresh.status().message()));
    }
  });
  EndClaim(known.name);
  if (!fresh.ok()) {
    Tell(known, spdlog::level::err, "not loaded", absl::StrCat(": ", fresh.status().message()));
    return fresh.status();
  }
  Tell(known, spdlog::level::info, "served",
       fmt::format(" after {:.2f} s", MicrosBetween(begin, Clock::Real().Now()) / 1e6));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ServedModel>> ModelRepository::Bring(const KnownModel& known, const Change& change) {
  auto opened = open_({known.name, known.location});
  if (!opened.ok()) return Annotate(opened.status(), absl::StrCat("model ", known.name));
  std::shared_ptr<ServedModel> model = *std::move(opened);
  if (change.layer.has_value() && !HasLayer(*model, *change.layer)) {
    return UnknownLayer(known.name, *change.layer, ShortListOf(model->spec.layers));
  }
  SY_RETURN_IF_ERROR(ClaimNames(model));
  const absl::Status brought = residence_->Bring(model, change.is_called_off);
  if (brought.ok()) return model;
  Release(model);
  model.reset();
  // Waits until the memory is free, so that a caller who tries again finds room.
  const absl::Status undone = residence_->WaitForRetirements(known.name, LoadedModels());
  return undone.ok() ? brought : undone;
}

absl::Status ModelRepository::ClaimNames(const std::shared_ptr<ServedModel>& model) {
  std::vector<std::shared_ptr<ServedModel>> others;  // they end outside the lock
  MutexLock lock(&mu_);
  for (const KnownModel& known : table_->models()) others.push_back(known.loaded);
  for (const auto& [checkpoint, claimed] : claims_) others.push_back(claimed.lock());
  for (const auto& other : others) {
    if (other != nullptr && other->name != model->name) SY_RETURN_IF_ERROR(CheckLayerNames(*model, *other));
  }
  claims_[model->name] = model;
  return absl::OkStatus();
}

void ModelRepository::EndClaim(const std::string& checkpoint) {
  MutexLock lock(&mu_);
  claims_.erase(checkpoint);
}

absl::Status ModelRepository::UnloadNow(const Change& change) {
  bool is_last = true;  // no layer of the checkpoint is served any more
  Edit(change.checkpoint, [&](KnownModel& model) {
    for (KnownModel::Layer& layer : model.layers) {
      if (!change.layer.has_value() || layer.name == *change.layer) layer.is_served = false;
      is_last = is_last && !layer.is_served;
    }
  });
  {
    SY_ASSIGN_OR_RETURN(const KnownModel model, FindModel(change.checkpoint));
    if (change.layer.has_value() && !model.layers.empty() && model.FindLayer(*change.layer) < 0) {
      return UnknownLayer(model.name, *change.layer, ShortListOf(model.layers));
    }
    if (!is_last || model.loaded == nullptr) return absl::OkStatus();
    Tell(model, spdlog::level::info, "unloading", "");
  }
  Edit(change.checkpoint, [](KnownModel& model) {
    model.loaded = nullptr;
    model.change = KnownModel::Change::kUnloading;
    model.reason = kUnloaded;
  });
  const absl::Status gone = residence_->WaitForRetirements(change.checkpoint, LoadedModels());
  Edit(change.checkpoint, [](KnownModel& model) { model.change = KnownModel::Change::kNone; });
  return gone;
}

}  // namespace switchyard
