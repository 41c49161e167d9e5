// Writes log lines to a descriptor on a thread of its own, so that no thread that logs waits for the log's reader.
//
// Lines wait in a queue of bounded size. While it is full, lines are dropped and counted. The log says how many, at the
// place where they are missing, as soon as its reader reads again.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/mutex.h"

namespace switchyard {

class LogWriter {
 public:
  // Makes the line that tells how many lines are missing. Called on the writer's thread.
  using TellDropsFn = std::function<std::string(int64_t lines)>;

  // `fd` must not block (KeepFromBlocking), and stays the caller's. The queue holds about `max_bytes`.
  LogWriter(int fd, size_t max_bytes, TellDropsFn tell_drops);
  ~LogWriter() { Finish(std::chrono::milliseconds(0)); }
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  // Queues `line`, newline included; never waits for the reader. After Finish, writes it at once or drops it.
  void Write(std::string line);

  // Waits until everything that was queued is written. False when it was not within `patience`.
  bool Flush(std::chrono::milliseconds patience);

  // Writes what is queued within `patience`, drops the rest, and ends the thread.
  void Finish(std::chrono::milliseconds patience);

  // Lines that were dropped, or that could not be written, since the start.
  int64_t num_dropped() const { return num_dropped_.load(); }
  // Whether nothing waits to be written. Safe in a signal handler.
  bool is_idle() const { return num_waiting_.load() == 0; }

 private:
  struct Line {
    std::string text;
    int64_t dropped_before = 0;  // lines that are missing before this one
  };

  void Run();
  bool TakeNext(Line* line);
  void Put(const Line& line);
  bool WriteBeforeStop(const std::string& text);
  bool IsLate();
  bool IsWritten() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return num_bytes_ == 0 && untold_drops_ == 0 && !is_writing_;
  }

  const int fd_;
  const size_t max_bytes_;
  const TellDropsFn tell_drops_;
  std::atomic<int64_t> num_dropped_{0};
  std::atomic<int64_t> num_waiting_{0};

  Mutex mu_;
  CondVar work_, written_;
  std::deque<Line> lines_ ABSL_GUARDED_BY(mu_);
  size_t num_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of lines_, and of the line that is being written
  bool is_writing_ ABSL_GUARDED_BY(mu_) = false;
  bool is_full_ ABSL_GUARDED_BY(mu_) = false;
  int64_t untold_drops_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  SteadyTime stop_at_ ABSL_GUARDED_BY(mu_);  // when stopping_
  Mutex join_mu_;
  std::thread thread_ ABSL_GUARDED_BY(join_mu_);
};

}  // namespace switchyard
