#include "server/group/group.h"

#include <pthread.h>

#include <algorithm>

#include "base/logging/log_text.h"
#include "base/logging/logging.h"
#include "base/notification.h"
#include "server/group/supervisor.h"
#include "server/links/stream_link.h"
#include "server/steps/scheduler.h"

namespace switchyard {

Group::Group(const GroupOptions& options, GroupEvents* events, std::vector<LinkBuffers*> buffers, Scheduler* scheduler,
             Metrics* metrics)
    : options_(options),
      events_(events),
      buffers_(std::move(buffers)),
      scheduler_(scheduler),
      metrics_(metrics),
      membership_(options.membership, this),
      next_tick_(now() + options.membership.ping_interval),
      shm_links_(options.membership.num_ranks) {
  Publish();
  if (options_.threads == Threads::kNone) return;
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "group");
}

Group::~Group() {
  events_->Close();
  if (thread_.joinable()) thread_.join();
  shm_links_.clear();  // their readers use the members above
}

void Group::Loop() {
  // Events that were posted before the tick are handled before it, so that a worker is not taken for silent while its
  // answer is queued.
  while (Turn(events_->Take(next_tick_))) {
  }
}

bool Group::Turn(const std::deque<GroupEvents::Event>& events) {
  for (const GroupEvents::Event& event : events) event(*this);
  if (events_->is_closed()) return false;
  if (now() >= next_tick_) {
    membership_.Tick(now());
    CheckOldestStep();
    next_tick_ = now() + options_.membership.ping_interval;
  }
  Publish();
  return true;
}

void Group::CheckOldestStep() {
  const auto oldest = scheduler_->oldest_step();
  if (!oldest.has_value()) return;
  if (std::pair(oldest->epoch, oldest->id) != oldest_step_) {
    oldest_step_ = {oldest->epoch, oldest->id};
    oldest_step_ticks_ = 0;
    return;
  }
  const auto age = ++oldest_step_ticks_ * options_.membership.ping_interval;
  if (age < oldest->limit) return;
  membership_.StepIsLate({oldest->epoch, oldest->id, oldest->what, oldest->owing, age, age >= oldest->limit_of_work},
                         now());
}

void Group::PostAndWait(const std::function<void()>& event) {
  if (options_.threads == Threads::kNone) {
    events_->Post([&event](Group&) { event(); });
    return RunDue();
  }
  auto done = std::make_shared<Notification>();
  events_->Post([event, done](Group&) {
    event();
    done->Notify();
  });
  done->WaitForNotification();
}

void Group::SetSupervisor(Supervisor* supervisor) {
  PostAndWait([this, supervisor] {
    supervisor_ = supervisor;
    for (size_t rank = 0; rank < membership_.ranks().size(); ++rank) TellJoined(static_cast<int>(rank));
  });
}

void Group::TellJoined(int rank) {
  const GroupRank& joined = membership_.ranks()[rank];
  if (supervisor_ != nullptr && !joined.is_absent()) supervisor_->NoteJoined(rank, joined.hello.pid());
}

// ---- Events ---------------------------------------------------------------------------------------------------------

void Group::LocalWorkerSpawned(int rank, UniqueFd link_socket) {
  events_->Post([rank, socket = std::make_shared<UniqueFd>(std::move(link_socket))](Group& group) {
    group.StartLink(rank, std::move(*socket));
  });
}

void Group::StartLink(int rank, UniqueFd socket) {
  shm_links_[rank].reset();
  auto link = ShmLink::Start(rank, std::move(socket), *buffers_[rank], options_.link_spin,
                             [scheduler = scheduler_](int from, const ResultMessage& result, const RowChunks* rows) {
                               scheduler->OnResult(from, result, rows);
                             });
  if (link.ok()) {
    shm_links_[rank] = *std::move(link);
  } else {
    spdlog::error("rank {}: no link: {}", rank, link.status().message());
  }
}

void Group::LocalWorkerExited(int rank, const std::string& how) {
  events_->Post([rank, how](Group& group) { group.membership_.LocalWorkerExited(rank, how, group.now()); });
}

void Group::Joined(std::shared_ptr<WorkerChannel> channel, worker::Hello hello) {
  events_->Post([channel = std::move(channel), hello = std::move(hello)](Group& group) {
    const auto rank = group.membership_.Join(channel, hello, group.now());
    if (rank.ok()) return group.TellJoined(*rank);
    group.Refused(WorkerRefusal::kHello, rank.status(),
                  absl::StrCat("process ", hello.pid(), " on ", NameForLog(hello.host())));
    channel->Close(rank.status());
  });
}

void Group::Refused(WorkerRefusal reason, const absl::Status& why, const std::string& peer) {
  metrics_->RecordWorkerRefusal(reason);
  LogWithin(&refused_lines_, spdlog::level::warn, "{} ({})", why.message(), peer);
}

void Group::Said(std::shared_ptr<WorkerChannel> channel, worker::WorkerMessage message) {
  events_->Post([channel = std::move(channel), message = std::move(message)](Group& group) {
    group.membership_.OnMessage(channel.get(), message, group.now());
  });
}

void Group::Left(std::shared_ptr<WorkerChannel> channel, const std::string& why) {
  events_->Post(
      [channel = std::move(channel), why](Group& group) { group.membership_.Leave(channel.get(), why, group.now()); });
}

void Group::OnStepFailed(Epoch epoch, int rank, const std::string& why) {
  membership_.StepFailed(epoch, rank, why, now());
}

void Group::StepDone(const WorkerChannel* channel, const ResultMessage& result, const RowChunks& rows) {
  int rank = 0;
  {
    MutexLock lock(&mu_);
    const auto found =
        std::find_if(serving_.begin(), serving_.end(), [&](const auto& serving) { return serving.get() == channel; });
    if (found == serving_.end()) return;
    rank = static_cast<int>(found - serving_.begin());
  }
  scheduler_->OnResult(rank, result, &rows);
}

void Group::AddNeededModel(GroupModel model) {
  events_->Post(
      [model = std::move(model)](Group& group) { group.membership_.AddModel(model, /*is_needed=*/true, group.now()); });
}

void Group::AddModel(GroupModel model, std::function<void(absl::Status)> done) {
  events_->Post([model = std::move(model), done = std::move(done)](Group& group) {
    group.adding_[model.id] = done;
    group.membership_.AddModel(model, /*is_needed=*/false, group.now());
  });
}

void Group::ReleaseModel(ModelId id) {
  events_->Post([id](Group& group) { group.membership_.ReleaseModel(id); });
}

void Group::RemoveModel(ModelId id, std::function<void()> done) {
  events_->Post([id, done = std::move(done)](Group& group) {
    group.adding_.erase(id);  // the caller has given up waiting for it
    group.removing_[id] = done;
    group.membership_.RemoveModel(id);
  });
}

void Group::Drain() {
  PostAndWait([this] { membership_.Drain(); });
}

// ---- Membership's decisions -----------------------------------------------------------------------------------------

void Group::OnGroupFormed(Epoch epoch) {
  std::vector<std::shared_ptr<LinkConnection>> connections;
  std::vector<std::shared_ptr<WorkerChannel>> channels;
  const GroupRanks& ranks = membership_.ranks();
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    connections.push_back(shm_links_[rank] != nullptr ? shm_links_[rank]->connection()
                                                      : MakeStreamConnection(ranks[rank].channel, buffers_[rank]));
    channels.push_back(ranks[rank].channel);
    if (supervisor_ != nullptr) supervisor_->NoteHealthy(static_cast<int>(rank));
  }
  {
    MutexLock lock(&mu_);
    serving_ = std::move(channels);
  }
  if (served_) {
    ++recoveries_;
    const double seconds = MicrosBetween(lost_at_, now()) * 1e-6;
    metrics_->RecordRecovery(seconds);
    spdlog::info("recovered in {:.3f} s", seconds);
  }
  served_ = true;
  scheduler_->GroupFormed(epoch, std::move(connections));
}

void Group::OnGroupLost(Epoch epoch, const std::string&) {
  lost_at_ = now();
  {
    MutexLock lock(&mu_);
    serving_.clear();
  }
  scheduler_->GroupLost(epoch);
}

void Group::OnWorkerGivenUp(int rank, int pid) {
  if (supervisor_ != nullptr) supervisor_->Kill(rank, pid);
}

void Group::OnLoadFailed(int rank, const absl::Status& why) {
  spdlog::error("rank {} cannot load: {}", rank, why.message());
  if (!served_) options_.on_first_load_failed(Annotate(why, absl::StrCat("worker of rank ", rank, " cannot load")));
}

void Group::OnModelLoaded(ModelId id) {
  if (auto done = adding_.extract(id)) done.mapped()(absl::OkStatus());
}

void Group::OnModelFailed(ModelId id, const absl::Status& why) {
  if (auto done = adding_.extract(id)) done.mapped()(why);
}

void Group::OnModelAbandoned(ModelId id, const absl::Status& why) { options_.on_model_abandoned(id, why); }

void Group::OnModelGone(ModelId id) {
  if (auto done = removing_.extract(id)) done.mapped()();
}

// ---- Views ----------------------------------------------------------------------------------------------------------

RankInfo Group::Describe(size_t index, bool is_serving) const {
  const GroupRank& rank = membership_.ranks()[index];
  RankInfo shown;
  shown.pid = rank.hello.pid();
  shown.host = rank.hello.host();
  shown.device = rank.hello.device();
  shown.link = shm_links_[index] != nullptr ? "shared-memory" : "grpc";
  shown.weight_bytes = rank.weight_bytes();
  shown.restarts = std::max(0, rank.joins - 1);
  shown.load_fraction = rank.load_fraction();
  switch (rank.state) {
    case RankState::kAbsent:
      shown.state = "absent";
      break;
    case RankState::kLoading:
      shown.state = "loading";
      break;
    case RankState::kReady:
      shown.state = is_serving ? "serving" : "ready";
      break;
  }
  return shown;
}

void Group::Publish() {
  GroupInfo info;
  info.serving = membership_.is_serving();
  info.epoch = membership_.epoch();
  info.recoveries = recoveries_;
  for (size_t rank = 0; rank < membership_.ranks().size(); ++rank) info.ranks.push_back(Describe(rank, info.serving));
  metrics_->SetGroup(info.epoch, info.serving ? static_cast<int>(info.ranks.size()) : 0);
  MutexLock lock(&mu_);
  info_ = std::move(info);
  published_.SignalAll();
}

GroupInfo Group::info() const {
  MutexLock lock(&mu_);
  return info_;
}

bool Group::WaitUntilServing(std::chrono::nanoseconds timeout) const {
  const SteadyTime deadline = Clock::Real().Now() + timeout;
  MutexLock lock(&mu_);
  while (!info_.serving) {
    if (published_.WaitUntil(&mu_, deadline)) return info_.serving;
  }
  return true;
}

}  // namespace switchyard
