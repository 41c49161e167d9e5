#include "server/membership.h"

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
bool IsPlausible(const worker::LoadProgress& progress) {
  constexpr int64_t kMaxBytes = int64_t{1} << 50;
  return std::all_of(progress.models().begin(), progress.models().end(), [](const worker::ModelProgress& model) {
    return model.bytes_done() >= 0 && model.bytes_done() <= model.bytes_total() && model.bytes_total() <= kMaxBytes;
  });
}

// A failure, whatever code it came with.
absl::Status LoadFailure(const worker::LoadFailed& message) {
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

absl::StatusOr<int> Membership::Join(std::shared_ptr<WorkerChannel> channel, const worker::Hello& hello,
                                     SteadyTime now) {
  SY_RETURN_IF_ERROR(CheckHello(hello));
  SY_ASSIGN_OR_RETURN(const int index, AssignRank(hello));
  SY_RETURN_IF_ERROR(Annotate(options_.check_compute_dtypes(hello),
                              absl::StrCat("worker refused: the engine of its device ", hello.device())));
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
  worker::FrontMessage message;
  *message.mutable_welcome() = options_.make_welcome(index);
  rank.channel->Send(std::move(message));
  return index;
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
    case worker::WorkerMessage::kLoadProgress: {
      const auto& progress = message.load_progress();
      if (!IsPlausible(progress)) return;
      if (progress.experts_total() > 0) {
        rank.load_fraction = static_cast<double>(progress.experts_done()) / progress.experts_total();
      }
      rank.load_progress = progress;
      return ShowLoad(now);
    }
    case worker::WorkerMessage::kLoaded:
      if (rank.state != RankState::kLoading) return;
      rank.state = RankState::kReady;
      rank.load_fraction = 1;
      rank.weight_bytes = message.loaded().weight_bytes();
      ShowLoad(now);
      spdlog::info("rank {}: loaded {:.1f} MiB", index, rank.weight_bytes / 1048576.0);
      return TryForm(now);
    case worker::WorkerMessage::kLoadFailed:
      return listener_->OnLoadFailed(index, LoadFailure(message.load_failed()));
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

void Membership::ShowLoad(SteadyTime now) const {
  std::vector<RankLoad> loads;
  for (const Rank& rank : ranks_) {
    const auto state = rank.state == RankState::kAbsent    ? RankLoad::State::kAbsent
                       : rank.state == RankState::kLoading ? RankLoad::State::kLoading
                                                           : RankLoad::State::kLoaded;
    loads.push_back({state, rank.load_progress});
  }
  options_.show_load(loads, now);
}

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
  rank.load_fraction = 0;
  rank.load_progress.Clear();
  rank.weight_bytes = 0;
  channel->Close(draining_ ? absl::OkStatus() : absl::UnavailableError(why));
  Break(absl::StrCat("rank ", index, ": ", why), now);
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
  if (!AllOf([](const Rank& rank) { return rank.state == RankState::kReady; })) ShowLoad(now);
  const bool forming = phase_ == Phase::kPreparing || phase_ == Phase::kConnecting;
  if (forming && now > form_deadline_) Break("forming took too long", now + options_.form_backoff);
  TryForm(now);
}

bool Membership::AllOf(const std::function<bool(const Rank&)>& condition) const {
  return std::all_of(ranks_.begin(), ranks_.end(), condition);
}

}  // namespace switchyard
