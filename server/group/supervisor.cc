#include "server/group/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/logging/logging.h"
#include "base/process/exhausted.h"
#include "moe/link/step_socket.h"

extern char** environ;

namespace switchyard {
namespace {

constexpr int kStatusLost = -1;  // no value of waitpid

constexpr int kLinkFd = 3;
constexpr std::chrono::milliseconds kFirstBackoff{100};
constexpr std::chrono::milliseconds kLongestBackoff{10'000};
// How often the supervisor looks whether a worker without a pidfd has ended.
constexpr int kReapIntervalMs = 20;

// The child's setup of files and signals: it inherits descriptors 0 to 2 and one socket, as kLinkFd, and starts without
// blocked signals.
class SpawnSetup {
 public:
  explicit SpawnSetup(int link_socket) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_adddup2(&actions_, link_socket, kLinkFd);
    posix_spawn_file_actions_addclosefrom_np(&actions_, kLinkFd + 1);
    posix_spawnattr_init(&attributes_);
    sigset_t none, defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &defaults);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnSetup() {
    posix_spawnattr_destroy(&attributes_);
    posix_spawn_file_actions_destroy(&actions_);
  }
  posix_spawn_file_actions_t* actions() { return &actions_; }
  posix_spawnattr_t* attributes() { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

std::string DescribeExit(int wait_status) {
  if (wait_status == kStatusLost) return "worker ended, and the system does not say how";
  if (WIFSIGNALED(wait_status)) return absl::StrCat("worker killed by signal ", WTERMSIG(wait_status));
  return absl::StrCat("worker exited with status ", WEXITSTATUS(wait_status));
}

}  // namespace

Supervisor::Supervisor(const SupervisorOptions& options, SpawnedFn on_spawned, ExitedFn on_exited, UniqueFd wake_fd)
    : options_(options),
      on_spawned_(std::move(on_spawned)),
      on_exited_(std::move(on_exited)),
      wake_fd_(std::move(wake_fd)),
      workers_(options.num_workers) {}

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Start(const SupervisorOptions& options, SpawnedFn on_spawned,
                                                              ExitedFn on_exited) {
  if (access(options.binary.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("worker program ", options.binary,
                                            " is not there or cannot be run; --worker_binary names another"));
  }
  UniqueFd wake_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd.valid()) return ErrnoStatus(errno, "eventfd");
  std::unique_ptr<Supervisor> supervisor(
      new Supervisor(options, std::move(on_spawned), std::move(on_exited), std::move(wake_fd)));
  supervisor->thread_ = std::thread([raw = supervisor.get()] { raw->Loop(); });
  return supervisor;
}

Supervisor::~Supervisor() {
  Shutdown(std::chrono::milliseconds(0));
  {
    MutexLock lock(&mu_);
    stop_ = true;
  }
  eventfd_write(wake_fd_.get(), 1);
  thread_.join();
}

void Supervisor::Kill(int index, int pid) {
  MutexLock lock(&mu_);
  if (workers_[index].pid == pid && pid != 0) kill(pid, SIGKILL);
}

void Supervisor::NoteJoined(int index, int pid) {
  MutexLock lock(&mu_);
  if (workers_[index].pid == pid) workers_[index].join_by = SteadyTime::max();
}

void Supervisor::NoteHealthy(int index) {
  MutexLock lock(&mu_);
  workers_[index].backoff = std::chrono::milliseconds(0);
}

void Supervisor::StopRestarting() {
  MutexLock lock(&mu_);
  restarting_ = false;
}

void Supervisor::Shutdown(std::chrono::milliseconds grace) {
  const SteadyTime deadline = Clock::Real().Now() + grace;
  MutexLock lock(&mu_);
  restarting_ = false;
  while (num_running_ > 0 && Clock::Real().Now() < deadline) {
    all_ended_.WaitUntil(&mu_, deadline);
  }
  for (const Worker& worker : workers_) {
    if (worker.pid != 0) kill(worker.pid, SIGKILL);
  }
  while (num_running_ > 0) all_ended_.Wait(&mu_);
}

std::vector<int> Supervisor::pids() const {
  MutexLock lock(&mu_);
  std::vector<int> pids;
  for (const Worker& worker : workers_) pids.push_back(worker.pid);
  return pids;
}

void Supervisor::Loop() {
  while (true) {
    StartDue();
    std::vector<pollfd> polled = {{wake_fd_.get(), POLLIN, 0}};
    {
      MutexLock lock(&mu_);
      if (stop_ && num_running_ == 0) return;
      for (const Worker& worker : workers_) {
        if (worker.pidfd.valid()) polled.push_back({worker.pidfd.get(), POLLIN, 0});
      }
    }
    poll(polled.data(), polled.size(), PollTimeoutMs());
    eventfd_t wakes;
    eventfd_read(wake_fd_.get(), &wakes);
    for (int i = 0; i < options_.num_workers; ++i) Reap(i);
    KillUnjoined();
  }
}

// Starts every worker that is not running and whose restart time has come.
void Supervisor::StartDue() {
  for (int i = 0; i < options_.num_workers; ++i) {
    {
      MutexLock lock(&mu_);
      if (!restarting_ || workers_[i].pid != 0 || workers_[i].restart_at > Clock::Real().Now()) continue;
    }
    if (absl::Status status = Spawn(i); !status.ok()) {
      spdlog::error("worker {}: {}", i, status.message());
      MutexLock lock(&mu_);
      workers_[i].restart_at = Clock::Real().Now() + kLongestBackoff;
    }
  }
}

absl::Status Supervisor::Spawn(int index) {
  SY_ASSIGN_OR_RETURN(SocketPair sockets, MakeSocketPair());
  // dup2 of kLinkFd onto itself would keep the close-on-exec flag, so the socket must not have that number already.
  if (sockets.worker.get() == kLinkFd) sockets.worker.reset(fcntl(kLinkFd, F_DUPFD_CLOEXEC, kLinkFd + 1));
  SpawnSetup setup(sockets.worker.get());
  std::vector<std::string> arguments = {options_.binary, absl::StrCat("--local_index=", index),
                                        absl::StrCat("--link_fd=", kLinkFd)};
  arguments.insert(arguments.end(), options_.arguments.begin(), options_.arguments.end());
  std::vector<std::string> environment = options_.environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, options_.binary.c_str(), setup.actions(), setup.attributes(),
                                Pointers(arguments).data(), Pointers(environment).data());
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("cannot start ", options_.binary, ": ", DescribeStartErrno(error)));
  }
  spdlog::info("worker {}: started as process {}", index, pid);
  Watch(index, pid);
  on_spawned_(index, std::move(sockets.front));
  return absl::OkStatus();
}

void Supervisor::Watch(int index, int pid) {
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) {
    spdlog::warn("worker {}: looked for every {} ms, because pidfd_open is refused: {}", index, kReapIntervalMs,
                 strerror(errno));
  }
  MutexLock lock(&mu_);
  Worker& worker = workers_[index];
  worker.pid = pid;
  worker.pidfd = std::move(pidfd);
  worker.join_by = Clock::Real().Now() + options_.join_timeout;
  ++num_running_;
  if (!restarting_) kill(pid, SIGKILL);  // the end has begun since the worker was found due
}

void Supervisor::Reap(int index) {
  int wait_status = 0;
  {
    // The lock keeps Kill from a process id that the system has given to another process already.
    MutexLock lock(&mu_);
    Worker& worker = workers_[index];
    if (worker.pid == 0) return;
    const pid_t ended = waitpid(worker.pid, &wait_status, WNOHANG);
    if (ended == 0 || (ended < 0 && errno != ECHILD)) return;
    if (ended < 0) wait_status = kStatusLost;
    worker.pid = 0;
    worker.pidfd.reset();
  }
  on_exited_(index, DescribeExit(wait_status));
  MutexLock lock(&mu_);
  Worker& worker = workers_[index];
  worker.restart_at = Clock::Real().Now() + worker.backoff;
  worker.backoff = std::clamp(worker.backoff * 2, kFirstBackoff, kLongestBackoff);
  if (--num_running_ == 0) all_ended_.SignalAll();
}

void Supervisor::KillUnjoined() {
  const SteadyTime now = Clock::Real().Now();
  MutexLock lock(&mu_);
  for (int i = 0; i < options_.num_workers; ++i) {
    Worker& worker = workers_[i];
    if (worker.pid == 0 || worker.join_by > now) continue;
    spdlog::warn("worker {}: process {} has not joined within {} ms, and is killed", i, worker.pid,
                 options_.join_timeout.count());
    worker.join_by = SteadyTime::max();
    kill(worker.pid, SIGKILL);
  }
}

int Supervisor::PollTimeoutMs() const {
  MutexLock lock(&mu_);
  SteadyTime next = SteadyTime::max();
  for (const Worker& worker : workers_) {
    if (worker.pid != 0 && !worker.pidfd.valid()) return kReapIntervalMs;
    if (worker.pid != 0) next = std::min(next, worker.join_by);
    if (worker.pid == 0 && restarting_) next = std::min(next, worker.restart_at);
  }
  if (next == SteadyTime::max()) return -1;
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(next - Clock::Real().Now());
  return static_cast<int>(std::max<int64_t>(wait.count(), 0));
}

}  // namespace switchyard
