// Starts the local workers, watches them, and starts a new one when one ends.
//
// A worker inherits one socket, its end of the shared-memory link, and a secret in its environment. When it ends, a
// pidfd tells the supervisor at once; where the system refuses pidfds, the supervisor looks for ended workers 50 times
// a second. A worker that keeps ending is restarted after ever longer pauses, of up to 10 s, until it is reported
// healthy. One that has not joined the group `join_timeout` after its start hangs, and is killed.
//
// The supervisor has one thread, which starts and reaps the processes, because a worker dies with the thread that
// started it.
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
  std::vector<std::string> environment;  // "NAME=value", in addition to this process's environment
  // Enough for a device that is slow to open, and more than a worker tries to reach the front.
  std::chrono::milliseconds join_timeout{120'000};
};

class Supervisor {
 public:
  // Called on the supervisor's thread. SpawnedFn gets the front's end of the new worker's link; ExitedFn gets a
  // description of how the worker ended.
  using SpawnedFn = std::function<void(int index, UniqueFd link_socket)>;
  using ExitedFn = std::function<void(int index, const std::string& how)>;

  static absl::StatusOr<std::unique_ptr<Supervisor>> Start(const SupervisorOptions& options, SpawnedFn on_spawned,
                                                           ExitedFn on_exited);
  // Kills the workers that are still running, also one that is just being started, and reaps them.
  ~Supervisor();

  // The following functions are thread-safe.

  // Kills worker `index` if it still is process `pid`. It is then restarted like any worker that ended.
  void Kill(int index, int pid);
  // Notes that worker `index` has joined the group, if it still is process `pid`.
  void NoteJoined(int index, int pid);
  // Notes that the worker does its work: if it ends, it is restarted at once.
  void NoteHealthy(int index);
  // After this no worker is restarted, and one that is just being started is killed.
  void StopRestarting();
  // Waits for all workers to end, and kills those that are still running after `grace`. Implies StopRestarting.
  void Shutdown(std::chrono::milliseconds grace);

  std::vector<int> pids() const;  // by worker; 0 for a worker that is not running

 private:
  struct Worker {
    int pid = 0;                             // 0 while it is not running
    UniqueFd pidfd;                          // readable when it has ended; invalid where the system has no pidfds
    SteadyTime join_by = SteadyTime::max();  // max() also once it has joined
    SteadyTime restart_at;
    std::chrono::milliseconds backoff{0};
  };

  Supervisor(const SupervisorOptions& options, SpawnedFn on_spawned, ExitedFn on_exited, UniqueFd wake_fd);

  void Loop();
  absl::Status Spawn(int index);
  void Watch(int index, int pid);
  void StartDue();
  void Reap(int index);
  void KillUnjoined();
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
