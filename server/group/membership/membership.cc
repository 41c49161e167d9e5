#include "server/group/membership/membership.h"

#include <algorithm>

#include "base/logging/log_text.h"

namespace switchyard {
namespace {

absl::Status Refuse(const std::string& what, const std::string& expected, const std::string& found) {
  return absl::FailedPreconditionError(
      absl::StrCat("worker refused: ", what, " is '", NameForLog(found), "', this front needs '", expected, "'"));
}

// Bounds of what a worker says about itself, which the front keeps and shows.
constexpr size_t kMaxNameBytes = 256, kMaxNames = 16;

// The bytes of an address with a part for every rank, and more (moe/exchange/gloo/gloo_address.h).
constexpr size_t kMaxAddressBytes = 4096, kMaxAddressBytesPerRank = 512;

absl::Status CheckSizes(const worker::Hello& hello) {
  const auto is_large = [](const std::string& text) { return text.size() > kMaxNameBytes; };
  const bool has_large = is_large(hello.host()) || is_large(hello.device()) || is_large(hello.host_identity()) ||
                         std::any_of(hello.compute_dtypes().begin(), hello.compute_dtypes().end(), is_large) ||
                         std::any_of(hello.exchanges().begin(), hello.exchanges().end(), is_large);
  const size_t num_names = std::max(hello.compute_dtypes_size(), hello.exchanges_size());
  if (!has_large && num_names <= kMaxNames) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("worker refused: its Hello has texts of more than ", kMaxNameBytes,
                                                 " bytes, or more than ", kMaxNames, " compute types or exchanges"));
}

}  // namespace

Membership::Membership(MembershipOptions options, MembershipListener* listener)
    : options_(std::move(options)),
      listener_(listener),
      ranks_(options_.num_ranks),
      models_(&ranks_, listener),
      formation_(options_.formation, &ranks_) {}

// ---- Joining and leaving --------------------------------------------------------------------------------------------

absl::Status Membership::CheckHello(const worker::Hello& hello) const {
  if (hello.version() != options_.version) return Refuse("its version", options_.version, hello.version());
  if (hello.build() != options_.build) return Refuse("its build", options_.build, hello.build());
  SY_RETURN_IF_ERROR(CheckSizes(hello));
  return Annotate(formation_.CheckExchange(hello), "worker refused");
}

absl::StatusOr<int> Membership::AssignRank(const worker::Hello& hello) const {
  if (options_.local) {
    if (hello.local_index() >= 0 && hello.local_index() < options_.num_ranks) return hello.local_index();
    return absl::FailedPreconditionError("worker refused: this front starts its workers itself (--local_workers)");
  }
  if (hello.local_index() >= 0) {
    return absl::FailedPreconditionError("worker refused: another front started it");
  }
  return AssignAwaitedRank(hello);
}

absl::StatusOr<int> Membership::AssignAwaitedRank(const worker::Hello& hello) const {
  const auto is_last_of = [&](const GroupRank& rank) { return rank.hello.instance() == hello.instance(); };
  std::optional<int> lowest, unclaimed;
  for (int index = 0; index < options_.num_ranks; ++index) {
    const GroupRank& rank = ranks_[index];
    if (!rank.is_absent() && hello.instance() != 0 && is_last_of(rank)) {
      if (hello.stream_number() >= rank.hello.stream_number()) return index;  // its earlier stream was cut
      return absl::UnavailableError("worker refused: it has opened a later stream");
    }
    if (!rank.is_absent()) continue;
    if (!lowest.has_value()) lowest = index;
    // The last worker of a rank may come back with the rank's weights.
    if (!unclaimed.has_value() && rank.hello.instance() == 0) unclaimed = index;
  }
  if (!lowest.has_value()) {
    return absl::UnavailableError(
        absl::StrCat("worker refused: all ", options_.num_ranks, " ranks of the group are taken"));
  }
  const int previous = hello.instance() == 0 ? -1 : hello.previous_rank();
  if (previous >= 0 && previous < options_.num_ranks && ranks_[previous].is_absent()) return previous;
  return unclaimed.value_or(*lowest);
}

absl::StatusOr<int> Membership::Join(std::shared_ptr<WorkerChannel> channel, const worker::Hello& hello,
                                     SteadyTime now) {
  SY_RETURN_IF_ERROR(CheckHello(hello));
  SY_ASSIGN_OR_RETURN(const int index, AssignRank(hello));
  SY_RETURN_IF_ERROR(models_.AgreeWith(hello));
  if (!ranks_[index].is_absent()) Vacate(index, absl::UnavailableError("a new stream took its rank"), now);
  GroupRank& rank = ranks_[index];
  const int joins = rank.joins + 1;
  rank = GroupRank{};
  rank.state = RankState::kLoading;
  rank.channel = std::move(channel);
  rank.hello = hello;
  rank.joins = joins;
  formation_.StartAnew();
  LogWithin(join_lines_.Of(absl::StrCat(index)), spdlog::level::info, "rank {}: worker {} on {} ({}) joined", index,
            hello.pid(), NameForLog(hello.host()), NameForLog(hello.device()));
  SendWelcome(index);
  models_.Refresh(rank);
  formation_.TryBegin(now);
  return index;
}

void Membership::SendWelcome(int index) {
  worker::FrontMessage message;
  worker::Welcome& welcome = *message.mutable_welcome();
  welcome.set_rank(index);
  welcome.set_num_ranks(options_.num_ranks);
  models_.Welcome(index, &welcome);
  ranks_[index].channel->Send(std::move(message));
}

int Membership::RankOf(const WorkerChannel* channel) const {
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    if (ranks_[rank].channel.get() == channel) return rank;
  }
  return -1;
}

void Membership::Vacate(int index, const absl::Status& why, SteadyTime now) {
  GroupRank& rank = ranks_[index];
  const std::shared_ptr<WorkerChannel> channel = std::move(rank.channel);
  rank.state = RankState::kAbsent;
  rank.channel = nullptr;
  channel->Close(draining_ ? absl::OkStatus() : why);
  const std::string text(why.message());
  Break(absl::StrCat("rank ", index, ": ", text), now);
  models_.OnVacated(index, text);
}

void Membership::Leave(const WorkerChannel* channel, const std::string& why, SteadyTime now) {
  if (const int index = RankOf(channel); index >= 0) Dismiss(index, absl::UnavailableError(why), now);
}

void Membership::LoadFailed(int index, const std::string& why, SteadyTime now) {
  Dismiss(index, absl::FailedPreconditionError(why), now);
}

void Membership::Dismiss(int index, const absl::Status& why, SteadyTime now) {
  LogWithin(loss_lines_.Of(absl::StrCat(index)), LossLevel(), "rank {}: left: {}", index, why.message());
  const int pid = ranks_[index].hello.pid();
  Vacate(index, why, now);
  if (!draining_) listener_->OnWorkerGivenUp(index, pid);
}

void Membership::LocalWorkerExited(int index, const std::string& why, SteadyTime now) {
  if (ranks_[index].is_absent()) return;
  spdlog::log(LossLevel(), "rank {}: {}", index, why);
  Vacate(index, absl::UnavailableError(why), now);
}

spdlog::level::level_enum Membership::LossLevel() const {
  return draining_ ? spdlog::level::info : spdlog::level::warn;
}

// ---- Messages of workers --------------------------------------------------------------------------------------------

void Membership::OnMessage(const WorkerChannel* channel, const worker::WorkerMessage& message, SteadyTime now) {
  const int index = RankOf(channel);
  if (index < 0) return;  // it was given up meanwhile
  GroupRank& rank = ranks_[index];
  // A late answer to an early ping shows that the worker lived then, not that it lives.
  const int64_t answered = message.has_pong() ? std::min(message.pong().number(), num_pings_) : num_pings_;
  rank.unanswered_pings = std::min(rank.unanswered_pings, num_pings_ - std::max<int64_t>(answered, 0));
  if (message.has_pong()) rank.progress.OnPong(message.pong());
  switch (message.message_case()) {
    case worker::WorkerMessage::kLoadProgress:
      models_.OnProgress(rank, message.load_progress());
      return ShowLoad(now);
    case worker::WorkerMessage::kModelLoaded:
      if (const auto why = models_.OnLoaded(index, message.model_loaded())) return LoadFailed(index, *why, now);
      ShowLoad(now);
      return formation_.TryBegin(now);
    case worker::WorkerMessage::kModelFailed:
      if (const auto why = models_.OnFailed(index, message.model_failed())) return LoadFailed(index, *why, now);
      ShowLoad(now);
      return formation_.TryBegin(now);
    case worker::WorkerMessage::kModelUnloaded:
      return models_.OnUnloaded(rank, ModelId{message.model_unloaded().model_id()});
    case worker::WorkerMessage::kGroupAddress:
      if (const size_t num_bytes = message.group_address().address().size(); num_bytes > MaxAddressBytes()) {
        return Leave(channel,
                     absl::StrCat("its address for the other ranks has ", num_bytes, " bytes, expected at most ",
                                  MaxAddressBytes()),
                     now);
      }
      return formation_.OnAddress(rank, message.group_address(), now);
    case worker::WorkerMessage::kGroupReady:
      if (formation_.OnReady(rank, message.group_ready())) listener_->OnGroupFormed(epoch());
      return;
    case worker::WorkerMessage::kGroupFailed:
      return GroupFailed(index, message.group_failed(), now);
    default:
      return;  // a pong
  }
}

size_t Membership::MaxAddressBytes() const { return kMaxAddressBytes + options_.num_ranks * kMaxAddressBytesPerRank; }

void Membership::GroupFailed(int index, const worker::GroupFailed& message, SteadyTime now) {
  if (Epoch{message.epoch()} != epoch() || formation_.phase() == Formation::Phase::kWaiting) return;
  const std::string why = CutForLog(message.message(), kMaxReasonBytes);
  if (is_serving()) return StepFailed(epoch(), index, why, now);
  formation_.Fail(absl::StrCat("rank ", index, ": ", why), now);
}

// ---- Models ---------------------------------------------------------------------------------------------------------

void Membership::AddModel(GroupModel model, bool is_needed, SteadyTime now) {
  models_.Add(std::move(model), is_needed);
  ShowLoad(now);
}

void Membership::ReleaseModel(ModelId id) { models_.Release(id); }

void Membership::RemoveModel(ModelId id) { models_.Remove(id); }

// ---- The group ------------------------------------------------------------------------------------------------------

void Membership::Break(const std::string& why, SteadyTime retry_at) {
  if (formation_.Break(why, retry_at)) listener_->OnGroupLost(epoch(), why);
}

void Membership::StepFailed(Epoch failed, int rank, const std::string& why, SteadyTime now) {
  if (!is_serving() || failed != epoch()) return;
  Break(absl::StrCat("a step failed on rank ", rank, ": ", why), formation_.AfterBackoff(now));
}

Blame Membership::FindBlame(const std::vector<int>& owing, Debt debt, bool blame_working) const {
  std::vector<const RankProgress*> progress;
  for (const GroupRank& rank : ranks_) progress.push_back(&rank.progress);
  return switchyard::FindBlame(progress, owing, debt, blame_working);
}

void Membership::GiveUp(int index, const std::string& why, SteadyTime now) {
  if (!ranks_[index].is_absent()) Leave(ranks_[index].channel.get(), why, now);
}

void Membership::StepIsLate(const LateStep& step, SteadyTime now) {
  if (!is_serving() || step.epoch != epoch() || draining_) return;
  const Blame blame = FindBlame(step.owing, Debt::kOfAll, step.is_very_late);
  const std::string why = absl::StrCat(step.what, " has not ended after ", step.age.count(), " ms: ", blame.text);
  for (const int rank : blame.guilty) GiveUp(rank, why, now);
  if (blame.guilty.empty() && !blame.is_working) Break(why, formation_.AfterBackoff(now));
}

void Membership::FormationIsLate(SteadyTime now) {
  const bool is_preparing = formation_.phase() == Formation::Phase::kPreparing;
  const Blame blame =
      FindBlame(formation_.Owing(), is_preparing ? Debt::kOfEach : Debt::kOfAll, formation_.IsVeryLate(now));
  const std::string why = absl::StrCat(
      "forming takes too long, ", is_preparing ? "addresses are missing: " : "not all are connected: ", blame.text);
  for (const int rank : blame.guilty) GiveUp(rank, why, now);
  if (blame.guilty.empty() && !blame.is_working) formation_.Fail(why, now);
}

void Membership::Drain() {
  draining_ = true;
  formation_.Stop();
  worker::FrontMessage message;
  message.mutable_drain();
  for (const GroupRank& rank : ranks_) {
    if (rank.channel != nullptr) rank.channel->Send(message);
  }
}

void Membership::PingAll(SteadyTime now) {
  const int64_t max_unanswered = std::max<int64_t>(1, options_.worker_timeout / options_.ping_interval);
  const int max_still = static_cast<int>(std::max<int64_t>(1, max_unanswered * 4 / 5));
  worker::FrontMessage ping;
  ping.mutable_ping()->set_number(++num_pings_);
  for (GroupRank& rank : ranks_) {
    if (rank.is_absent()) continue;
    rank.progress.OnTick();
    const auto still = draining_ ? std::nullopt : rank.progress.StandsStill(max_still);
    if (rank.unanswered_pings >= max_unanswered) {
      Leave(rank.channel.get(), absl::StrCat("no answer for ", options_.worker_timeout.count(), " ms"), now);
    } else if (still.has_value()) {
      Leave(rank.channel.get(), *still, now);
    } else {
      ++rank.unanswered_pings;
      rank.channel->Send(ping);
    }
  }
}

void Membership::Tick(SteadyTime now) {
  const auto since_last = last_tick_.has_value() ? now - *last_tick_ : SteadyTime::duration(0);
  last_tick_ = now;
  if (since_last > 2 * options_.ping_interval) formation_.Excuse(since_last - options_.ping_interval);
  PingAll(now);
  if (models_.is_loading()) ShowLoad(now);
  if (formation_.IsLate(now)) FormationIsLate(now);
  formation_.TryBegin(now);
}

}  // namespace switchyard
