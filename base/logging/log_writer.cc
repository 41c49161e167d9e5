#include "base/logging/log_writer.h"

#include <signal.h>

#include <utility>

#include "base/process/bounded_write.h"

namespace switchyard {
namespace {

// Memory that a queued line takes beside its text.
constexpr size_t kLineOverhead = 64;

// How often a writer whose reader does not read looks whether it is to stop.
constexpr std::chrono::milliseconds kStopInterval{50};

size_t SizeOf(const std::string& text) { return text.size() + kLineOverhead; }

}  // namespace

LogWriter::LogWriter(int fd, size_t max_bytes, TellDropsFn tell_drops)
    : fd_(fd), max_bytes_(max_bytes), tell_drops_(std::move(tell_drops)) {
  // The thread takes no signals: a handler must not run where a stalled reader could hold it, and a broken pipe is an
  // error of the write.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void LogWriter::Write(std::string line) {
  {
    MutexLock lock(&mu_);
    if (!stopping_) {
      if (num_bytes_ + SizeOf(line) > max_bytes_) is_full_ = true;
      if (is_full_) {
        ++untold_drops_;
        num_dropped_.fetch_add(1);
        return;
      }
      num_bytes_ += SizeOf(line);
      num_waiting_.fetch_add(1);
      lines_.push_back({std::move(line), std::exchange(untold_drops_, 0)});
      work_.Signal();
      return;
    }
  }
  if (WriteWithin(fd_, line, std::chrono::milliseconds(0)) != WriteOutcome::kWritten) num_dropped_.fetch_add(1);
}

bool LogWriter::Flush(std::chrono::milliseconds patience) {
  const SteadyTime end = Clock::Real().Now() + patience;
  MutexLock lock(&mu_);
  while (!IsWritten()) {
    if (written_.WaitUntil(&mu_, end)) return IsWritten();
  }
  return true;
}

void LogWriter::Finish(std::chrono::milliseconds patience) {
  {
    MutexLock lock(&mu_);
    if (!stopping_) stop_at_ = Clock::Real().Now() + patience;
    stopping_ = true;
    work_.Signal();
  }
  MutexLock lock(&join_mu_);
  if (thread_.joinable()) thread_.join();
}

void LogWriter::Run() {
  Line line;
  while (TakeNext(&line)) {
    Put(line);
    MutexLock lock(&mu_);
    is_writing_ = false;
    if (!line.text.empty()) {
      num_bytes_ -= SizeOf(line.text);
      num_waiting_.fetch_sub(1);
    }
    // Room for more than one line, so that the log of a slow reader does not alternate between lines and gaps.
    if (num_bytes_ <= max_bytes_ / 2) is_full_ = false;
    if (IsWritten()) written_.SignalAll();
  }
}

// Returns false when the thread is to end. Drops that no line follows make a line without text.
bool LogWriter::TakeNext(Line* line) {
  MutexLock lock(&mu_);
  while (lines_.empty() && untold_drops_ == 0 && !stopping_) work_.Wait(&mu_);
  if (lines_.empty()) {
    *line = {"", std::exchange(untold_drops_, 0)};
  } else {
    *line = std::move(lines_.front());
    lines_.pop_front();
  }
  is_writing_ = line->dropped_before > 0 || !line->text.empty();
  return is_writing_;
}

void LogWriter::Put(const Line& line) {
  if (line.dropped_before > 0) WriteBeforeStop(tell_drops_(line.dropped_before));
  if (!line.text.empty() && !WriteBeforeStop(line.text)) num_dropped_.fetch_add(1);
}

// After the time to stop, takes only the room that there is.
bool LogWriter::WriteBeforeStop(const std::string& text) {
  std::string_view rest = text;
  while (true) {
    const bool is_late = IsLate();
    const WriteOutcome outcome = WriteSome(fd_, is_late ? std::chrono::milliseconds(0) : kStopInterval, &rest);
    if (is_late || outcome != WriteOutcome::kTimedOut) return outcome == WriteOutcome::kWritten;
  }
}

bool LogWriter::IsLate() {
  MutexLock lock(&mu_);
  return stopping_ && Clock::Real().Now() >= stop_at_;
}

}  // namespace switchyard
