#include "server/group/membership/models_on_ranks.h"

#include <algorithm>

#include "base/logging/log_text.h"
#include "base/logging/logging.h"

namespace switchyard {
namespace {

// No memory is larger. Progress beyond it, or with more bytes done than there are, is dropped, so that sums over
// progress stay meaningful.
constexpr int64_t kMaxBytes = int64_t{1} << 50;

bool IsPlausible(const worker::LoadProgress& progress) {
  return std::all_of(progress.models().begin(), progress.models().end(), [](const worker::ModelProgress& model) {
    return model.bytes_done() >= 0 && model.bytes_done() <= model.bytes_total() && model.bytes_total() <= kMaxBytes;
  });
}

// An error, also when the message's code says OK.
absl::Status LoadFailure(const worker::ModelFailed& message) {
  const auto code = static_cast<absl::StatusCode>(message.code());
  return absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code,
                      CutForLog(message.message(), kMaxReasonBytes));
}

std::string NameOfLayer(const GroupModel& model, size_t layer_idx) {
  return layer_idx < model.layer_names.size() ? model.layer_names[layer_idx] : absl::StrCat("number ", layer_idx);
}

bool HasLoaded(const GroupRank& rank, ModelId id) {
  const auto model = rank.models.find(id);
  return model != rank.models.end() && model->second.state == RankModel::State::kLoaded;
}

}  // namespace

std::vector<ModelsOnRanks::Model>::iterator ModelsOnRanks::Find(ModelId id) {
  return std::find_if(models_.begin(), models_.end(), [&](const Model& model) { return model.what.id == id; });
}

// ---- The models that are wanted -------------------------------------------------------------------------------------

void ModelsOnRanks::Add(GroupModel model, bool is_needed) {
  const ModelId id = model.id;
  models_.push_back({std::move(model), is_needed});
  for (const GroupRank& rank : ranks_) {
    if (rank.is_absent()) continue;
    const absl::Status agreed = Agree(rank.hello, &models_.back().what);
    if (!agreed.ok()) {
      return Fail(id, Annotate(agreed, absl::StrCat("the engine of the device ", NameForLog(rank.hello.device()))));
    }
  }
  Offer();
}

bool ModelsOnRanks::IsSuspect(ModelId id) const {
  return std::any_of(models_.begin(), models_.end(),
                     [&](const Model& model) { return model.what.id == id && model.is_suspect; });
}

bool ModelsOnRanks::MayLoad(const GroupRank& rank, const Model& model) const {
  if (rank.models.contains(model.what.id)) return false;
  if (model.is_needed) return true;
  return std::none_of(rank.models.begin(), rank.models.end(), [&](const auto& other) {
    return other.second.state == RankModel::State::kLoading && (model.is_suspect || IsSuspect(other.first));
  });
}

void ModelsOnRanks::Offer() {
  for (const Model& model : models_) {
    for (size_t index = 0; index < ranks_.size(); ++index) {
      GroupRank& rank = ranks_[index];
      if (rank.is_absent() || !MayLoad(rank, model)) continue;
      rank.models[model.what.id];
      worker::FrontMessage message;
      *message.mutable_load_model()->mutable_model() = model.what.shares[index];
      rank.channel->Send(std::move(message));
    }
  }
}

void ModelsOnRanks::Release(ModelId id) {
  if (const auto model = Find(id); model != models_.end()) model->is_released = true;
}

void ModelsOnRanks::Remove(ModelId id) {
  DropFromNeeds(id);
  departing_.insert(id);
  CheckGone(id);
}

void ModelsOnRanks::DropFromNeeds(ModelId id) {
  if (const auto model = Find(id); model != models_.end()) models_.erase(model);
  for (GroupRank& rank : ranks_) {
    if (!rank.is_absent()) Refresh(rank);  // it may have lacked this model only
  }
  Discard(id);
  Offer();
}

void ModelsOnRanks::Discard(ModelId id) {
  worker::FrontMessage message;
  message.mutable_unload_model()->set_model_id(id.value);
  for (GroupRank& rank : ranks_) {
    const auto model = rank.models.find(id);
    if (model == rank.models.end() || model->second.state == RankModel::State::kUnloading) continue;
    model->second.state = RankModel::State::kUnloading;
    rank.channel->Send(message);
  }
}

void ModelsOnRanks::CheckGone(ModelId id) {
  if (!departing_.contains(id)) return;
  if (!AllRanks(ranks_, [&](const GroupRank& rank) { return !rank.models.contains(id); })) return;
  departing_.erase(id);
  listener_->OnModelGone(id);
}

bool ModelsOnRanks::HasSuccessor(const GroupModel& model) const {
  return std::any_of(models_.begin(), models_.end(), [&](const Model& other) {
    return other.what.name == model.name && other.what.id.value > model.id.value;
  });
}

void ModelsOnRanks::Fail(ModelId id, const absl::Status& why) {
  models_.erase(Find(id));
  Discard(id);
  Offer();
  listener_->OnModelFailed(id, why);
}

void ModelsOnRanks::CheckLoaded(ModelId id) {
  const auto model = Find(id);
  if (model == models_.end() || model->is_needed) return;
  if (!AllRanks(ranks_, [&](const GroupRank& rank) { return HasLoaded(rank, id); })) return;
  model->is_needed = true;
  listener_->OnModelLoaded(id);
}

// ---- Workers that come and go ---------------------------------------------------------------------------------------

absl::Status ModelsOnRanks::Agree(const worker::Hello& hello, GroupModel* model) {
  SY_ASSIGN_OR_RETURN(const std::string dtype,
                      model->choose_compute_dtype({hello.compute_dtypes().begin(), hello.compute_dtypes().end()}));
  for (worker::ModelShare& share : model->shares) share.set_compute_dtype(dtype);
  return absl::OkStatus();
}

absl::Status ModelsOnRanks::AgreeWith(const worker::Hello& hello) {
  std::vector<std::pair<ModelId, absl::Status>> failed;
  for (Model& model : models_) {
    const absl::Status agreed =
        Annotate(Agree(hello, &model.what), absl::StrCat("the engine of its device ", NameForLog(hello.device())));
    if (agreed.ok()) continue;
    if (model.is_needed) return Annotate(agreed, "worker refused");
    failed.emplace_back(model.what.id, agreed);
  }
  for (const auto& [id, why] : failed) Fail(id, why);
  return absl::OkStatus();
}

void ModelsOnRanks::Welcome(int rank, worker::Welcome* welcome) {
  for (const bool is_needed : {true, false}) {
    for (const Model& model : models_) {
      if (model.is_needed != is_needed || !MayLoad(ranks_[rank], model)) continue;
      *welcome->add_models() = model.what.shares[rank];
      ranks_[rank].models[model.what.id];
    }
  }
}

void ModelsOnRanks::Refresh(GroupRank& rank) const {
  const bool has_all = std::all_of(models_.begin(), models_.end(), [&](const Model& model) {
    return !model.is_needed || HasLoaded(rank, model.what.id);
  });
  rank.state = has_all ? RankState::kReady : RankState::kLoading;
}

void ModelsOnRanks::OnVacated(int index, const std::string& why) {
  const std::map<ModelId, RankModel> gone = std::exchange(ranks_[index].models, {});
  std::vector<ModelId> loading;
  for (const auto& [id, model] : gone) {
    if (model.state == RankModel::State::kLoading) loading.push_back(id);
  }
  for (Model& model : models_) {
    if (model.are_digests_final) continue;
    for (auto& layer : model.digests) {
      std::erase_if(layer, [&](const auto& digest) { return digest.second.rank == index; });
    }
  }
  for (const ModelId id : loading) {
    const auto model = Find(id);
    if (model == models_.end() || model->is_needed) continue;
    model->is_suspect = true;
    if (loading.size() > 1 || ++model->num_deaths < kMaxDeaths) continue;
    Fail(id, absl::FailedPreconditionError(absl::StrCat(
                 kMaxDeaths, " workers in a row died while they loaded nothing but this, the last one of rank ", index,
                 ": ", why, "; it may need more memory than there is")));
  }
  for (const auto& [id, model] : gone) CheckGone(id);
}

// ---- Messages of the workers ----------------------------------------------------------------------------------------

void ModelsOnRanks::OnProgress(GroupRank& rank, const worker::LoadProgress& message) {
  if (!IsPlausible(message)) return;
  for (const worker::ModelProgress& progress : message.models()) {
    const auto model = rank.models.find(ModelId{progress.model_id()});
    if (model == rank.models.end()) continue;
    model->second.has_reported = true;
    model->second.bytes_done = progress.bytes_done();
    model->second.bytes_total = progress.bytes_total();
  }
}

absl::Status ModelsOnRanks::AddDigests(int rank, const worker::ModelLoaded& message, Model* model) {
  const worker::ModelShare& share = model->what.shares[rank];
  bool fits = message.layers_size() == share.layers_size();
  for (int i = 0; fits && i < share.layers_size(); ++i) {
    fits = message.layers(i).digest_size() == share.layers(i).expert_idx_size();
  }
  if (!fits) return absl::InvalidArgumentError("it did not report one digest for each of its experts");
  model->digests.resize(share.layers_size());
  for (int i = 0; i < share.layers_size(); ++i) {
    for (int slot = 0; slot < share.layers(i).expert_idx_size(); ++slot) {
      const int32_t expert = share.layers(i).expert_idx(slot);
      const auto known = model->digests[i].find(expert);
      if (known == model->digests[i].end() || known->second.value == message.layers(i).digest(slot)) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("model ", model->what.name, ", layer ", NameOfLayer(model->what, i), ", expert ", expert,
                       ": its weights are not those that rank ", known->second.rank, " read",
                       rank == known->second.rank ? " before" : "",
                       "; give all hosts the same files, or load the model anew to serve what is there now"));
    }
  }
  for (int i = 0; i < share.layers_size(); ++i) {
    for (int slot = 0; slot < share.layers(i).expert_idx_size(); ++slot) {
      model->digests[i].try_emplace(share.layers(i).expert_idx(slot),
                                    ExpertDigest{message.layers(i).digest(slot), rank});
    }
  }
  return absl::OkStatus();
}

std::optional<std::string> ModelsOnRanks::OnLoaded(int index, const worker::ModelLoaded& message) {
  GroupRank& rank = ranks_[index];
  const ModelId id{message.model_id()};
  const auto loaded = rank.models.find(id);
  if (loaded == rank.models.end() || loaded->second.state != RankModel::State::kLoading) return std::nullopt;
  loaded->second.state = RankModel::State::kLoaded;
  loaded->second.bytes_done = loaded->second.bytes_total;
  loaded->second.weight_bytes = std::clamp<int64_t>(message.weight_bytes(), 0, kMaxBytes);
  if (const auto model = Find(id); model != models_.end()) {
    const absl::Status same = AddDigests(index, message, &*model);
    if (!same.ok()) return GiveUpLoad(index, id, same);
    spdlog::info("rank {}: model {}: loaded {:.1f} MiB", index, model->what.name,
                 loaded->second.weight_bytes / 1048576.0);
    model->num_deaths = 0;
    model->are_digests_final =
        model->are_digests_final || AllRanks(ranks_, [&](const GroupRank& each) { return HasLoaded(each, id); });
  }
  CheckLoaded(id);
  Refresh(rank);
  Offer();
  return std::nullopt;
}

std::optional<std::string> ModelsOnRanks::OnFailed(int index, const worker::ModelFailed& message) {
  GroupRank& rank = ranks_[index];
  const ModelId id{message.model_id()};
  const auto failed = rank.models.find(id);
  if (failed == rank.models.end() || failed->second.state != RankModel::State::kLoading) return std::nullopt;
  rank.models.erase(failed);  // its worker has nothing of it
  return GiveUpLoad(index, id, LoadFailure(message));
}

std::optional<std::string> ModelsOnRanks::GiveUpLoad(int index, ModelId id, const absl::Status& why) {
  const auto model = Find(id);
  const bool is_needed = model != models_.end() && model->is_needed;
  // A group that waited for a released model could neither end the model's requests nor any others.
  if (is_needed && !model->is_released && !HasSuccessor(model->what)) {
    listener_->OnLoadFailed(index, why);
    return absl::StrCat("cannot load: ", why.message());
  }
  if (is_needed) {
    listener_->OnModelAbandoned(id, Annotate(why, absl::StrCat("rank ", index)));
    DropFromNeeds(id);
  } else if (model != models_.end()) {
    Fail(id, Annotate(why, absl::StrCat("rank ", index)));
  }
  Offer();
  return std::nullopt;
}

void ModelsOnRanks::OnUnloaded(GroupRank& rank, ModelId id) {
  rank.models.erase(id);
  CheckGone(id);
  Offer();
}

// ---- Views ----------------------------------------------------------------------------------------------------------

bool ModelsOnRanks::is_loading() const {
  const auto is_loading = [](const auto& model) { return model.second.state == RankModel::State::kLoading; };
  return !AllRanks(
      ranks_, [&](const GroupRank& rank) { return std::none_of(rank.models.begin(), rank.models.end(), is_loading); });
}

std::vector<ModelLoad> ModelsOnRanks::Loads() const {
  std::vector<ModelLoad> loads;
  for (const Model& model : models_) {
    ModelLoad load = {model.what.id, model.what.name, {}};
    for (const GroupRank& rank : ranks_) {
      const auto found = rank.models.find(model.what.id);
      if (found == rank.models.end()) {
        load.ranks.emplace_back();
        continue;
      }
      const RankModel& on_rank = found->second;
      const bool is_loaded = on_rank.state == RankModel::State::kLoaded;
      load.ranks.push_back({is_loaded ? RankLoad::State::kLoaded : RankLoad::State::kLoading, on_rank.has_reported,
                            on_rank.bytes_done, on_rank.bytes_total});
    }
    loads.push_back(std::move(load));
  }
  return loads;
}

}  // namespace switchyard
