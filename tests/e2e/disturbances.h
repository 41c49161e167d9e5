// Ways to disturb another process without its help: one of its threads stands still, or packets to it are lost.
#pragma once

#include <sys/types.h>

#include <string>

namespace switchyard {

// The number of the thread of this name; -1 when the process has none.
pid_t FindThread(pid_t pid, const std::string& name);

// Keeps one thread of another process stopped, by ptrace. Used by one thread.
class StoppedThread {
 public:
  explicit StoppedThread(pid_t tid);
  ~StoppedThread();
  StoppedThread(const StoppedThread&) = delete;
  StoppedThread& operator=(const StoppedThread&) = delete;

  // An errno when the system does not let this process stop the other's thread; else 0.
  int error() const { return error_; }
  // The process has no end for its parent before its tracer has seen it. Returns whether it has ended.
  bool Reap();

 private:
  const pid_t tid_;
  int error_ = 0;
  bool has_ended_ = false;
};

// Drops all packets that arrive at the TCP connections of a worker from now on, other than at that to its front.
// Returns how many connections these are; 0 also when the system does not let this process have them.
int DropPacketsFromPeers(pid_t worker);

}  // namespace switchyard
