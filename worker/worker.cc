#include "worker/worker.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "base/logging/logging.h"
#include "moe/link/step_socket.h"
#include "rpc/address.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;

// Other than 0.
uint64_t RandomInstance() {
  std::random_device random;
  return std::uniform_int_distribution<uint64_t>(1)(random);
}

JoinTimes TimesOf(const WorkerOptions& options) {
  return {.join = milliseconds(options.join_timeout_ms),
          .rejoin = milliseconds(options.local_index < 0 ? options.rejoin_timeout_ms : 0)};
}

// Returns whether `fd` has become readable before the pause was over.
bool PauseUnlessReadable(int fd, milliseconds pause) {
  pollfd polled = {fd, POLLIN, 0};
  return poll(&polled, 1, static_cast<int>(pause.count())) > 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(const WorkerOptions& options, DeviceOpener open_device) {
  std::unique_ptr<Worker> worker(new Worker());
  worker->base_.options = options;
  worker->base_.instance = RandomInstance();
  SY_ASSIGN_OR_RETURN(worker->base_.device, open_device(options));
  if (options.link_fd >= 0) SY_RETURN_IF_ERROR(worker->AttachLink());
  if (options.http_port.has_value()) SY_RETURN_IF_ERROR(worker->StartHttp());
  return worker;
}

absl::Status Worker::StartHttp() {
  const WorkerOptions& options = base_.options;
  const int number = *options.http_port == 0 ? 0 : std::max(0, options.local_index);
  SY_ASSIGN_OR_RETURN(http_, HttpServer::Start(
                                 {options.http_host, *options.http_port + number},
                                 [this] { return base_.metrics.Collect(); }, [this] { return CheckInGroup(); }));
  spdlog::info("metrics at http://{}/metrics", JoinHostPort(options.http_host, http_->port()));
  return absl::OkStatus();
}

absl::Status Worker::CheckInGroup() const {
  if (base_.metrics.in_group()) return absl::OkStatus();
  return absl::UnavailableError(base_.has_front ? "the front has formed no group with this worker"
                                                : "no front has taken this worker");
}

absl::Status Worker::AttachLink() {
  StepLink& link = base_.link;
  link.socket = UniqueFd(base_.options.link_fd);
  SY_ASSIGN_OR_RETURN(Setup setup, ReceiveSetup(link.socket.get()));
  link.layout = setup.layout;
  SY_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Attach(std::move(setup.memory_fd), link.layout.total_bytes()));
  link.memory.emplace(std::move(memory));
  if (absl::Status locked = base_.device->LockMemory(link.memory->data(), link.memory->size()); !locked.ok()) {
    spdlog::warn("the link's memory stays pageable, which makes steps slower: {}", locked.message());
  }
  return absl::OkStatus();
}

WorkerEnd Worker::Run(int stop_fd) {
  base_.step_heartbeat.WatchThisThread();
  spdlog::info("joining the front at {}", base_.options.front);
  JoinAttempts attempts(TimesOf(base_.options), base_.instance, Clock::Real().Now());
  while (true) {
    std::optional<SteadyTime> welcomed_at;
    const WorkerEnd end = Join(stop_fd, attempts.WelcomeDue(Clock::Real().Now()), &welcomed_at);
    if (end.code != ExitCode::kNoFront) return end;
    const auto pause = attempts.PauseAfter(welcomed_at, Clock::Real().Now());
    const milliseconds patience = attempts.patience();
    if (!pause.has_value()) {
      if (patience.count() == 0) return end;
      return {end.code, Annotate(end.why, absl::StrCat("no front took this worker within ", patience.count(), " ms"))};
    }
    TellThatFrontIsLost(end, welcomed_at.has_value(), patience);
    if (PauseUnlessReadable(stop_fd, *pause)) return {};
  }
}

WorkerEnd Worker::Join(int stop_fd, SteadyTime welcome_due, std::optional<SteadyTime>* welcomed_at) {
  const auto session = Session::Create(&base_);
  if (!session.ok()) {
    // A file may be incomplete while somebody replaces it.
    return {has_joined() ? ExitCode::kNoFront : ExitCode::kError, session.status()};
  }
  const WorkerEnd end = (*session)->Run(stop_fd, welcome_due);
  *welcomed_at = (*session)->welcomed_at();
  return end;
}

// Once for each reason, because attempts fail for the same one again and again.
void Worker::TellThatFrontIsLost(const WorkerEnd& end, bool was_welcomed, milliseconds patience) {
  const std::string why(end.why.message());
  if (was_welcomed) {
    spdlog::warn("{}; {:.1f} MiB of weights are kept, to join again within {} ms", why,
                 base_.kept.weight_bytes() / 1048576.0, patience.count());
  } else if (why != last_told_) {
    spdlog::info("{}; trying again", why);
  }
  last_told_ = was_welcomed ? "" : why;
}

}  // namespace switchyard
