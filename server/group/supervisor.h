// Starts the local workers, watches them, and starts a new one when one ends.
//
// A worker inherits one socket, its end of the shared-memory link, and a secret in its environment. Its end is noticed
// through a pidfd, at once and without races over reused process ids. A worker that keeps ending is
// restarted ever more slowly, up to every 10 s, until one does its work.
//
// Threads: one of its own, which starts and reaps the processes (a worker dies with the thread that started it).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/unique_fd.h"

namespace switchyard {

struct SupervisorOptions {
  int num_workers = 1;
  std::string binary;
  std::vector<std::string> arguments;    // of every worker, after its --local_index and --link_fd
  std::vector<std::string> environment;  // "NAME=value", added to ours
};

class Supervisor {
 public:
  // From the supervisor's thread: a worker was started, with our end of its link; a worker ended.
  using SpawnedFn = std::function<void(int index, UniqueFd link_socket)>;
  using ExitedFn = std::function<void(int index, const std::string& how)>;

  static absl::StatusOr<std::unique_ptr<Supervisor>> Start(const SupervisorOptions& options, SpawnedFn on_spawned,
                                                           ExitedFn on_exited);
  // Kills the workers that Shutdown has not ended.
  ~Supervisor();

  // All of the following are thread-safe.

  // Kills worker `index` if it still is process `pid`; it is then restarted like any that ended.
  void Kill(int index, int pid);
  // The worker does its work: should it end, its next start is immediate.
  void NoteHealthy(int index);
  // From now on no worker is restarted.
  void StopRestarting();
  // Waits for all workers to end, and kills those that have not within `grace`. Implies StopRestarting.
  void Shutdown(std::chrono::milliseconds grace);

  std::vector<int> pids() const;  // 0 for one that is not running

 private:
  struct Worker {
    int pid = 0;
    UniqueFd pidfd;
    SteadyTime restart_at;
    std::chrono::milliseconds backoff{0};
  };

  Supervisor(const SupervisorOptions& options, SpawnedFn on_spawned, ExitedFn on_exited, UniqueFd wake_fd);

  void Loop();
  absl::Status Spawn(int index);
  void StartDue();
  void Reap(int index);
  int PollTimeoutMs() const;

  const SupervisorOptions options_;
  const SpawnedFn on_spawned_;
  const ExitedFn on_exited_;
  const UniqueFd wake_fd_;

  mutable Mutex mu_;
  CondVar all_ended_;
  std::vector<Worker> workers_ ABSL_GUARDED_BY(mu_);
  bool restarting_ ABSL_GUARDED_BY(mu_) = true;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  int num_running_ ABSL_GUARDED_BY(mu_) = 0;

  std::thread thread_;
};

}  // namespace switchyard
