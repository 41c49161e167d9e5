#include "server/group/membership.h"

#include <algorithm>

namespace switchyard {
namespace {

absl::Status Refuse(const std::string& what, const std::string& expected, const std::string& found) {
  return absl::FailedPreconditionError(
      absl::StrCat("worker refused: ", what, " is '", found, "', this front needs '", expected, "'"));
}

// Equal time for equal lengths, whatever the contents.
bool SameSecret(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

// Bytes of more than any memory, or more done than there are, would only confuse whoever adds them up.
constexpr int64_t kMaxBytes = int64_t{1} << 50;
bool IsPlausible(const worker::LoadProgress& progress) {
  return std::all_of(progress.models().begin(), progress.models().end(), [](const worker::ModelProgress& model) {
    return model.bytes_done() >= 0 && model.bytes_done() <= model.bytes_total() && model.bytes_total() <= kMaxBytes;
  });
}

// A failure, whatever code it came with.
absl::Status LoadFailure(const worker::ModelFailed& message) {
  const auto code = static_cast<absl::StatusCode>(message.code());
  return absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code, message.message());
}

}  // namespace

Membership::Membership(MembershipOptions options, MembershipListener* listener)
    : options_(std::move(options)), listener_(listener), ranks_(options_.num_ranks) {}

absl::Status Membership::CheckHello(const worker::Hello& hello) const {
  if (!SameSecret(hello.token(), options_.token)) {
    return absl::UnauthenticatedError("worker refused: its token is not this front's");
  }
  if (hello.version() != options_.version) return Refuse("its version", options_.version, hello.version());
  if (hello.build() != options_.build) return Refuse("its build", options_.build, hello.build());
  for (const Rank& rank : ranks_) {
    if (rank.state != RankState::kAbsent && rank.hello.exchange() != hello.exchange()) {
      return Refuse("its exchange", rank.hello.exchange(), hello.exchange());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Membership::AssignRank(const worker::Hello& hello) const {
  if (options_.local) {
    if (hello.local_index() >= 0 && hello.local_index() < options_.num_ranks) return hello.local_index();
    return absl::FailedPreconditionError("worker refused: this front starts its workers itself (--local_workers)");
  }
  if (hello.local_index() >= 0) {
    return absl::FailedPreconditionError("worker refused: another front started it");
  }
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    if (ranks_[rank].state == RankState::kAbsent) return rank;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("worker refused: all ", options_.num_ranks, " ranks of the group are taken"));
}

absl::Status Membership::Agree(const worker::Hello& hello, GroupModel* model) {
  SY_ASSIGN_OR_RETURN(const std::string dtype,
                      model->choose_compute_dtype({hello.compute_dtypes().begin(), hello.compute_dtypes().end()}));
  for (worker::ModelShare& share : model->shares) share.set_compute_dtype(dtype);
  return absl::OkStatus();
}

absl::Status Membership::AgreeWith(const worker::Hello& hello) {
  std::vector<std::pair<ModelId, absl::Status>> failed;
  for (Model& model : models_) {
    const absl::Status agreed =
        Annotate(Agree(hello, &model.what), absl::StrCat("the engine of its device ", hello.device()));
    if (agreed.ok()) continue;
    if (model.is_needed) return Annotate(agreed, "worker refused");
    failed.emplace_back(model.what.id, agreed);
  }
  for (const auto& [id, why] : failed) FailModel(id, why);
  return absl::OkStatus();
}

absl::StatusOr<int> Membership::Join(std::shared_ptr<WorkerChannel> channel, const worker::Hello& hello,
                                     SteadyTime now) {
  SY_RETURN_IF_ERROR(CheckHello(hello));
  SY_ASSIGN_OR_RETURN(const int index, AssignRank(hello));
  SY_RETURN_IF_ERROR(AgreeWith(hello));
  if (ranks_[index].state != RankState::kAbsent) Vacate(index, "a new worker took its rank", now);
  Rank& rank = ranks_[index];
  const int joins = rank.joins + 1;
  rank = Rank{};
  rank.state = RankState::kLoading;
  rank.channel = std::move(channel);
  rank.hello = hello;
  rank.joins = joins;
  rank.last_heard = now;
  spdlog::info("rank {}: worker {} on {} ({}) joined", index, hello.pid(), hello.host(), hello.device());
  Welcome(index);
  Refresh(rank);
  TryForm(now);
  return index;
}

void Membership::Welcome(int index) {
  worker::FrontMessage message;
  worker::Welcome& welcome = *message.mutable_welcome();
  welcome.set_rank(index);
  welcome.set_num_ranks(options_.num_ranks);
  for (const bool is_needed : {true, false}) {
    for (const Model& model : models_) {
      if (model.is_needed != is_needed) continue;
      *welcome.add_models() = model.what.shares[index];
      ranks_[index].parts[model.what.id];
    }
  }
  ranks_[index].channel->Send(std::move(message));
}

int Membership::RankOf(const WorkerChannel* channel) const {
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    if (ranks_[rank].channel.get() == channel) return rank;
  }
  return -1;
}

void Membership::OnMessage(const WorkerChannel* channel, const worker::WorkerMessage& message, SteadyTime now) {
  const int index = RankOf(channel);
  if (index < 0) return;  // it was given up meanwhile
  Rank& rank = ranks_[index];
  rank.last_heard = now;
  switch (message.message_case()) {
    case worker::WorkerMessage::kLoadProgress:
      if (!IsPlausible(message.load_progress())) return;
      OnProgress(rank, message.load_progress());
      return ShowLoad(now);
    case worker::WorkerMessage::kModelLoaded:
      return OnLoaded(index, message.model_loaded(), now);
    case worker::WorkerMessage::kModelFailed:
      return OnFailed(index, message.model_failed(), now);
    case worker::WorkerMessage::kModelUnloaded:
      return OnUnloaded(rank, ModelId{message.model_unloaded().model_id()});
    case worker::WorkerMessage::kGroupAddress:
      return OnAddress(rank, message.group_address());
    case worker::WorkerMessage::kGroupReady:
      return OnReady(rank, message.group_ready());
    case worker::WorkerMessage::kGroupFailed:
      if (Epoch{message.group_failed().epoch()} != epoch_ || phase_ == Phase::kWaiting) return;
      return Break(absl::StrCat("rank ", index, ": ", message.group_failed().message()), now + options_.form_backoff);
    default:
      return;  // a pong, which has done its work above
  }
}

// ---- Models ---------------------------------------------------------------------------------------------------------

int64_t Membership::Rank::weight_bytes() const {
  int64_t total = 0;
  for (const auto& [id, part] : parts) total += part.weight_bytes;
  return total;
}

double Membership::Rank::load_fraction() const {
  if (state == RankState::kAbsent) return 0;
  int64_t done = 0, total = 0;
  bool has_all = true;
  for (const auto& [id, part] : parts) {
    done += part.bytes_done;
    total += part.bytes_total;
    has_all = has_all && part.state != Part::State::kLoading;
  }
  if (has_all) return 1;
  return total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
}

std::vector<Membership::Model>::iterator Membership::FindModel(ModelId id) {
  return std::find_if(models_.begin(), models_.end(), [&](const Model& model) { return model.what.id == id; });
}

void Membership::AddModel(GroupModel model, bool is_needed, SteadyTime now) {
  const ModelId id = model.id;
  models_.push_back({std::move(model), is_needed});
  for (const Rank& rank : ranks_) {
    if (rank.state == RankState::kAbsent) continue;
    const absl::Status agreed = Agree(rank.hello, &models_.back().what);
    if (!agreed.ok()) {
      return FailModel(id, Annotate(agreed, absl::StrCat("the engine of the device ", rank.hello.device())));
    }
  }
  for (int index = 0; index < options_.num_ranks; ++index) {
    Rank& rank = ranks_[index];
    if (rank.state == RankState::kAbsent) continue;
    rank.parts[id];
    worker::FrontMessage message;
    *message.mutable_load_model()->mutable_model() = models_.back().what.shares[index];
    rank.channel->Send(std::move(message));
  }
  ShowLoad(now);
}

void Membership::ReleaseModel(ModelId id) {
  if (const auto model = FindModel(id); model != models_.end()) model->is_released = true;
}

void Membership::RemoveModel(ModelId id) {
  DropFromNeeds(id);
  departing_.insert(id);
  CheckGone(id);
}

void Membership::DropFromNeeds(ModelId id) {
  if (const auto model = FindModel(id); model != models_.end()) models_.erase(model);
  for (Rank& rank : ranks_) {
    if (rank.state != RankState::kAbsent) Refresh(rank);  // it may have lacked this one only
  }
  Discard(id);
}

bool Membership::HasSuccessor(const GroupModel& model) const {
  return std::any_of(models_.begin(), models_.end(), [&](const Model& other) {
    return other.what.name == model.name && other.what.id.value > model.id.value;
  });
}

// Tells every rank that has something of the model, or is about to, to free it.
void Membership::Discard(ModelId id) {
  worker::FrontMessage message;
  message.mutable_unload_model()->set_model_id(id.value);
  for (Rank& rank : ranks_) {
    const auto part = rank.parts.find(id);
    if (part == rank.parts.end() || part->second.state == Part::State::kUnloading) continue;
    part->second.state = Part::State::kUnloading;
    rank.channel->Send(message);
  }
}

void Membership::CheckGone(ModelId id) {
  if (!departing_.contains(id) || !AllOf([&](const Rank& rank) { return !rank.parts.contains(id); })) return;
  departing_.erase(id);
  listener_->OnModelGone(id);
}

void Membership::FailModel(ModelId id, const absl::Status& why) {
  models_.erase(FindModel(id));
  Discard(id);
  listener_->OnModelFailed(id, why);
}

void Membership::CheckLoaded(ModelId id) {
  const auto model = FindModel(id);
  if (model == models_.end() || model->is_needed) return;
  const auto has_it = [&](const Rank& rank) {
    const auto part = rank.parts.find(id);
    return part != rank.parts.end() && part->second.state == Part::State::kLoaded;
  };
  if (!AllOf(has_it)) return;
  model->is_needed = true;
  listener_->OnModelLoaded(id);
}

void Membership::Refresh(Rank& rank) {
  const bool has_all = std::all_of(models_.begin(), models_.end(), [&](const Model& model) {
    const auto part = rank.parts.find(model.what.id);
    return !model.is_needed || (part != rank.parts.end() && part->second.state == Part::State::kLoaded);
  });
  rank.state = has_all ? RankState::kReady : RankState::kLoading;
}

void Membership::OnProgress(Rank& rank, const worker::LoadProgress& message) {
  for (const worker::ModelProgress& progress : message.models()) {
    const auto part = rank.parts.find(ModelId{progress.model_id()});
    if (part == rank.parts.end()) continue;
    part->second.has_reported = true;
    part->second.bytes_done = progress.bytes_done();
    part->second.bytes_total = progress.bytes_total();
  }
}

void Membership::OnLoaded(int index, const worker::ModelLoaded& message, SteadyTime now) {
  Rank& rank = ranks_[index];
  const auto part = rank.parts.find(ModelId{message.model_id()});
  if (part == rank.parts.end() || part->second.state != Part::State::kLoading) return;
  part->second.state = Part::State::kLoaded;
  part->second.bytes_done = part->second.bytes_total;
  part->second.weight_bytes = std::clamp<int64_t>(message.weight_bytes(), 0, kMaxBytes);
  ShowLoad(now);
  const auto model = FindModel(part->first);
  spdlog::info("rank {}: model {}: loaded {:.1f} MiB", index, model == models_.end() ? "?" : model->what.name,
               message.weight_bytes() / 1048576.0);
  CheckLoaded(ModelId{message.model_id()});
  Refresh(rank);
  TryForm(now);
}

void Membership::OnFailed(int index, const worker::ModelFailed& message, SteadyTime now) {
  Rank& rank = ranks_[index];
  const ModelId id{message.model_id()};
  const auto part = rank.parts.find(id);
  if (part == rank.parts.end() || part->second.state != Part::State::kLoading) return;
  const absl::Status why = LoadFailure(message);
  const auto model = FindModel(id);
  const bool is_needed = model != models_.end() && model->is_needed;
  // A group that waited for a released model could not end its requests either, nor those of any other.
  if (is_needed && !model->is_released && !HasSuccessor(model->what)) {
    listener_->OnLoadFailed(index, why);
    return Leave(rank.channel.get(), absl::StrCat("cannot load: ", message.message()), now);
  }
  rank.parts.erase(part);  // its worker has nothing of it
  if (is_needed) {
    listener_->OnModelAbandoned(id, Annotate(why, absl::StrCat("rank ", index)));
    DropFromNeeds(id);
  } else if (model != models_.end()) {
    FailModel(id, Annotate(why, absl::StrCat("rank ", index)));
  }
  ShowLoad(now);
  TryForm(now);
}

void Membership::OnUnloaded(Rank& rank, ModelId id) {
  rank.parts.erase(id);
  CheckGone(id);
}

void Membership::ShowLoad(SteadyTime now) const {
  std::vector<ModelLoad> loads;
  for (const Model& model : models_) {
    ModelLoad load = {model.what.id, model.what.name, {}};
    for (const Rank& rank : ranks_) {
      const auto part = rank.parts.find(model.what.id);
      RankLoad on_rank;
      if (part != rank.parts.end()) {
        const bool is_loaded = part->second.state == Part::State::kLoaded;
        on_rank = {is_loaded ? RankLoad::State::kLoaded : RankLoad::State::kLoading, part->second.has_reported,
                   part->second.bytes_done, part->second.bytes_total};
      }
      load.ranks.push_back(on_rank);
    }
    loads.push_back(std::move(load));
  }
  options_.show_load(loads, now);
}

// ---- The group ------------------------------------------------------------------------------------------------------

void Membership::TryForm(SteadyTime now) {
  if (phase_ != Phase::kWaiting || now < form_not_before_ || draining_) return;
  if (!AllOf([](const Rank& rank) { return rank.state == RankState::kReady; })) return;
  ++epoch_.value;
  phase_ = Phase::kPreparing;
  form_deadline_ = now + options_.form_timeout;
  spdlog::info("forming the group of epoch {}", epoch_.value);
  for (Rank& rank : ranks_) {
    rank.address.reset();
    rank.connected = false;
    worker::FrontMessage message;
    message.mutable_prepare_group()->set_epoch(epoch_.value);
    rank.channel->Send(std::move(message));
  }
}

void Membership::OnAddress(Rank& rank, const worker::GroupAddress& message) {
  if (phase_ != Phase::kPreparing || Epoch{message.epoch()} != epoch_) return;
  rank.address = message.address();
  if (!AllOf([](const Rank& each) { return each.address.has_value(); })) return;
  phase_ = Phase::kConnecting;
  worker::FrontMessage connect;
  connect.mutable_connect_group()->set_epoch(epoch_.value);
  for (const Rank& each : ranks_) connect.mutable_connect_group()->add_addresses(*each.address);
  for (const Rank& each : ranks_) each.channel->Send(connect);
}

void Membership::OnReady(Rank& rank, const worker::GroupReady& message) {
  if (phase_ != Phase::kConnecting || Epoch{message.epoch()} != epoch_) return;
  rank.connected = true;
  if (!AllOf([](const Rank& each) { return each.connected; })) return;
  phase_ = Phase::kServing;
  spdlog::info("group of epoch {} serves with {} ranks", epoch_.value, options_.num_ranks);
  listener_->OnGroupFormed(epoch_);
}

void Membership::Break(const std::string& why, SteadyTime retry_at) {
  const bool served = phase_ == Phase::kServing;
  if (phase_ != Phase::kWaiting && !draining_) {
    spdlog::warn("group of epoch {} is over: {}", epoch_.value, why);
    EndGroup();
  }
  phase_ = Phase::kWaiting;
  form_not_before_ = retry_at;
  if (served) listener_->OnGroupLost(epoch_, why);
}

// Survivors that wait for rows of the lost rank stop waiting now, not when the next group forms.
void Membership::EndGroup() {
  worker::FrontMessage message;
  message.mutable_end_group()->set_epoch(epoch_.value);
  for (const Rank& rank : ranks_) {
    if (rank.channel != nullptr) rank.channel->Send(message);
  }
}

spdlog::level::level_enum Membership::LossLevel() const {
  return draining_ ? spdlog::level::info : spdlog::level::warn;
}

void Membership::Vacate(int index, const std::string& why, SteadyTime now) {
  Rank& rank = ranks_[index];
  const std::shared_ptr<WorkerChannel> channel = std::move(rank.channel);
  rank.state = RankState::kAbsent;
  rank.channel = nullptr;
  const std::map<ModelId, Part> parts = std::move(rank.parts);
  rank.parts.clear();
  channel->Close(draining_ ? absl::OkStatus() : absl::UnavailableError(why));
  Break(absl::StrCat("rank ", index, ": ", why), now);
  for (const auto& [id, part] : parts) CheckGone(id);
}

void Membership::Leave(const WorkerChannel* channel, const std::string& why, SteadyTime now) {
  const int index = RankOf(channel);
  if (index < 0) return;
  spdlog::log(LossLevel(), "rank {}: left: {}", index, why);
  const int pid = ranks_[index].hello.pid();
  Vacate(index, why, now);
  if (!draining_) listener_->OnWorkerGivenUp(index, pid);
}

void Membership::LocalWorkerExited(int index, const std::string& why, SteadyTime now) {
  if (ranks_[index].state == RankState::kAbsent) return;
  spdlog::log(LossLevel(), "rank {}: {}", index, why);
  Vacate(index, why, now);
}

void Membership::StepFailed(Epoch epoch, int rank, const std::string& why, SteadyTime now) {
  if (phase_ != Phase::kServing || epoch != epoch_) return;
  // Often the first sign of a peer's death: a moment's patience saves a formation with the dead.
  Break(absl::StrCat("a step failed on rank ", rank, ": ", why), now + options_.form_backoff);
}

void Membership::Drain() {
  draining_ = true;
  worker::FrontMessage message;
  message.mutable_drain();
  for (const Rank& rank : ranks_) {
    if (rank.channel != nullptr) rank.channel->Send(message);
  }
}

void Membership::Tick(SteadyTime now) {
  worker::FrontMessage ping;
  ping.mutable_ping()->set_number(++num_pings_);
  for (int index = 0; index < options_.num_ranks; ++index) {
    Rank& rank = ranks_[index];
    if (rank.state == RankState::kAbsent) continue;
    if (now - rank.last_heard > options_.worker_timeout) {
      const std::string why = absl::StrCat("no answer for ", options_.worker_timeout.count(), " ms");
      Leave(rank.channel.get(), why, now);
    } else {
      rank.channel->Send(ping);
    }
  }
  const auto is_loading = [](const auto& part) { return part.second.state == Part::State::kLoading; };
  if (!AllOf([&](const Rank& rank) { return std::none_of(rank.parts.begin(), rank.parts.end(), is_loading); })) {
    ShowLoad(now);
  }
  const bool forming = phase_ == Phase::kPreparing || phase_ == Phase::kConnecting;
  if (forming && now > form_deadline_) Break("forming took too long", now + options_.form_backoff);
  TryForm(now);
}

bool Membership::AllOf(const std::function<bool(const Rank&)>& condition) const {
  return std::all_of(ranks_.begin(), ranks_.end(), condition);
}

}  // namespace switchyard
