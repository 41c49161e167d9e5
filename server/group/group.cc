#include "server/group/group.h"

#include <algorithm>

#include "base/logging.h"
#include "base/notification.h"
#include "server/group/supervisor.h"
#include "server/links/stream_link.h"
#include "server/steps/scheduler.h"

namespace switchyard {

Group::Group(const GroupOptions& options, std::vector<LinkBuffers*> buffers, Scheduler* scheduler, Metrics* metrics,
             std::function<void(const absl::Status&)> on_first_load_failed)
    : options_(options),
      buffers_(std::move(buffers)),
      scheduler_(scheduler),
      metrics_(metrics),
      on_first_load_failed_(std::move(on_first_load_failed)),
      membership_(options.membership, this),
      shm_links_(options.membership.num_ranks) {
  Publish();
  thread_ = std::thread([this] { Loop(); });
}

Group::~Group() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void Group::Post(std::function<void()> event) {
  MutexLock lock(&mu_);
  events_.push_back(std::move(event));
  changed_.SignalAll();
}

void Group::PostAndWait(const std::function<void()>& event) {
  auto done = std::make_shared<Notification>();
  Post([event, done] {
    event();
    done->Notify();
  });
  done->WaitForNotification();
}

void Group::SetSupervisor(Supervisor* supervisor) {
  PostAndWait([this, supervisor] { supervisor_ = supervisor; });
}

void Group::Loop() {
  SteadyTime next_tick = Clock::Real().Now() + options_.tick;
  while (true) {
    std::function<void()> event;
    {
      MutexLock lock(&mu_);
      while (events_.empty() && !stopping_ && Clock::Real().Now() < next_tick) {
        changed_.WaitWithTimeout(&mu_, absl::FromChrono(next_tick - Clock::Real().Now()));
      }
      if (stopping_) return;
      if (!events_.empty()) {
        event = std::move(events_.front());
        events_.pop_front();
      }
    }
    if (event) event();
    if (Clock::Real().Now() >= next_tick) {
      membership_.Tick(Clock::Real().Now());
      next_tick = Clock::Real().Now() + options_.tick;
    }
    Publish();
  }
}

// ---- Events ---------------------------------------------------------------------------------------------------------

void Group::LocalWorkerSpawned(int rank, UniqueFd link_socket) {
  Post([this, rank, socket = std::make_shared<UniqueFd>(std::move(link_socket))] {
    shm_links_[rank].reset();
    auto link = ShmLink::Start(rank, std::move(*socket), *buffers_[rank], options_.link_spin,
                               [this](int from, const ResultMessage& result, std::span<const std::byte> rows) {
                                 scheduler_->OnResult(from, result, rows);
                               });
    if (link.ok()) {
      shm_links_[rank] = *std::move(link);
    } else {
      spdlog::error("rank {}: no link: {}", rank, link.status().message());
    }
  });
}

void Group::LocalWorkerExited(int rank, const std::string& how) {
  Post([this, rank, how] { membership_.LocalWorkerExited(rank, how, Clock::Real().Now()); });
}

void Group::Joined(std::shared_ptr<WorkerChannel> channel, worker::Hello hello) {
  Post([this, channel = std::move(channel), hello = std::move(hello)] {
    const auto rank = membership_.Join(channel, hello, Clock::Real().Now());
    if (rank.ok()) return;
    spdlog::warn("{} (process {} on {})", rank.status().message(), hello.pid(), hello.host());
    channel->Close(rank.status());
  });
}

void Group::Said(std::shared_ptr<WorkerChannel> channel, worker::WorkerMessage message) {
  if (message.has_step_result()) {
    Post([this, channel = std::move(channel), message = std::move(message)] {
      const auto& ranks = membership_.ranks();
      for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
        if (ranks[rank].channel != channel) continue;
        const std::string& rows = message.step_result().rows();
        scheduler_->OnResult(rank, ParseStreamResult(message.step_result()), std::as_bytes(std::span(rows)));
      }
    });
    return;
  }
  Post([this, channel = std::move(channel), message = std::move(message)] {
    membership_.OnMessage(channel.get(), message, Clock::Real().Now());
  });
}

void Group::Left(std::shared_ptr<WorkerChannel> channel, const std::string& why) {
  Post([this, channel = std::move(channel), why] { membership_.Leave(channel.get(), why, Clock::Real().Now()); });
}

void Group::StepFailed(Epoch epoch, int rank, const absl::Status& why) {
  scheduler_->GroupLost(epoch);
  Post([this, epoch, rank, text = std::string(why.message())] {
    membership_.StepFailed(epoch, rank, text, Clock::Real().Now());
  });
}

void Group::AddNeededModel(GroupModel model) {
  Post([this, model = std::move(model)] { membership_.AddModel(model, /*is_needed=*/true, Clock::Real().Now()); });
}

void Group::AddModel(GroupModel model, std::function<void(absl::Status)> done) {
  Post([this, model = std::move(model), done = std::move(done)] {
    adding_[model.id] = done;
    membership_.AddModel(model, /*is_needed=*/false, Clock::Real().Now());
  });
}

void Group::ReleaseModel(ModelId id) {
  Post([this, id] { membership_.ReleaseModel(id); });
}

void Group::RemoveModel(ModelId id, std::function<void()> done) {
  Post([this, id, done = std::move(done)] {
    removing_[id] = done;
    membership_.RemoveModel(id);
  });
}

void Group::Drain() {
  PostAndWait([this] { membership_.Drain(); });
}

// ---- What membership decides ----------------------------------------------------------------------------------------

void Group::OnGroupFormed(Epoch epoch) {
  std::vector<std::shared_ptr<LinkConnection>> connections;
  const auto& ranks = membership_.ranks();
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    connections.push_back(shm_links_[rank] != nullptr ? shm_links_[rank]->connection()
                                                      : MakeStreamConnection(ranks[rank].channel, buffers_[rank]));
    if (supervisor_ != nullptr) supervisor_->NoteHealthy(static_cast<int>(rank));
  }
  if (served_) {
    ++recoveries_;
    const double seconds = MicrosBetween(lost_at_, Clock::Real().Now()) * 1e-6;
    metrics_->RecordRecovery(seconds);
    spdlog::info("recovered in {:.3f} s", seconds);
  }
  served_ = true;
  scheduler_->GroupFormed(epoch, std::move(connections));
}

void Group::OnGroupLost(Epoch epoch, const std::string&) {
  lost_at_ = Clock::Real().Now();
  scheduler_->GroupLost(epoch);
}

void Group::OnWorkerGivenUp(int rank, int pid) {
  if (supervisor_ != nullptr) supervisor_->Kill(rank, pid);
}

void Group::OnLoadFailed(int rank, const absl::Status& why) {
  spdlog::error("rank {} cannot load: {}", rank, why.message());
  if (!served_) on_first_load_failed_(Annotate(why, absl::StrCat("worker of rank ", rank, " cannot load")));
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

void Group::Publish() {
  GroupInfo info;
  info.serving = membership_.phase() == Membership::Phase::kServing;
  info.epoch = membership_.epoch();
  info.recoveries = recoveries_;
  for (size_t i = 0; i < membership_.ranks().size(); ++i) {
    const Membership::Rank& rank = membership_.ranks()[i];
    RankInfo shown;
    shown.pid = rank.hello.pid();
    shown.host = rank.hello.host();
    shown.device = rank.hello.device();
    shown.link = shm_links_[i] != nullptr ? "shared-memory" : "grpc";
    shown.weight_bytes = rank.weight_bytes();
    shown.restarts = std::max(0, rank.joins - 1);
    shown.load_fraction = rank.load_fraction();
    switch (rank.state) {
      case Membership::RankState::kAbsent:
        shown.state = "absent";
        break;
      case Membership::RankState::kLoading:
        shown.state = "loading";
        break;
      case Membership::RankState::kReady:
        shown.state = info.serving ? "serving" : "ready";
        break;
    }
    info.ranks.push_back(std::move(shown));
  }
  metrics_->SetGroup(info.epoch, info.serving ? static_cast<int>(info.ranks.size()) : 0);
  MutexLock lock(&mu_);
  info_ = std::move(info);
  changed_.SignalAll();
}

GroupInfo Group::info() const {
  MutexLock lock(&mu_);
  return info_;
}

bool Group::WaitUntilServing(absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mu_);
  while (!info_.serving) {
    if (changed_.WaitWithTimeout(&mu_, deadline - absl::Now())) return info_.serving;
  }
  return true;
}

}  // namespace switchyard
