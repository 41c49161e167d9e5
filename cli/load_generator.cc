#include "cli/load_generator.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "cli/random.h"

namespace switchyard {
namespace {

// The times of a run (its begin, the begin of the measured part, its end) and its statistics. Thread-safe.
class Run {
 public:
  explicit Run(const LoadOptions& options)
      : start_(Clock::Real().Now()), measured_from_(start_ + options.warmup), end_(measured_from_ + options.duration) {}

  SteadyTime start() const { return start_; }
  SteadyTime end() const { return end_; }
  int64_t NextIdx() { return next_idx_.fetch_add(1, std::memory_order_relaxed); }

  void Record(SteadyTime intended, const Outcome& outcome) {
    const SteadyTime now = Clock::Real().Now();
    if (intended < measured_from_ || intended >= end_) return;
    MutexLock lock(&mu_);
    last_answer_ = std::max(last_answer_, now);
    if (outcome.status.ok()) {
      ++stats_.num_ok;
      stats_.num_bytes += outcome.num_bytes;
      stats_.latency.Record(now - intended);
      return;
    }
    ErrorCount& error = stats_.errors[outcome.status.code()];
    if (error.count++ == 0) error.first_message = std::string(outcome.status.message());
  }

  void RecordUnsent(SteadyTime intended) {
    MutexLock lock(&mu_);
    if (intended >= measured_from_) ++stats_.num_unsent;
  }

  // Call it after the last Record.
  LoadStats Finish() {
    MutexLock lock(&mu_);
    stats_.elapsed_s = std::chrono::duration<double>(std::max(end_, last_answer_) - measured_from_).count();
    return std::move(stats_);
  }

 private:
  const SteadyTime start_;
  const SteadyTime measured_from_;
  const SteadyTime end_;
  std::atomic<int64_t> next_idx_{0};

  Mutex mu_;
  LoadStats stats_ ABSL_GUARDED_BY(mu_);
  SteadyTime last_answer_ ABSL_GUARDED_BY(mu_){};
};

// Counts the requests in flight of an open loop, or the running callers of a closed loop. Thread-safe.
class Permits {
 public:
  // Takes a permit and returns true. While `limit` are taken it waits, at most until `deadline`; then it returns false.
  bool Take(int limit, SteadyTime deadline) {
    MutexLock lock(&mu_);
    while (num_taken_ >= limit) {
      if (changed_.WaitUntil(&mu_, deadline) && num_taken_ >= limit) return false;
    }
    ++num_taken_;
    return true;
  }
  void GiveBack() {
    MutexLock lock(&mu_);
    --num_taken_;
    changed_.SignalAll();
  }
  void WaitForAll() {
    MutexLock lock(&mu_);
    while (num_taken_ > 0) changed_.Wait(&mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int num_taken_ ABSL_GUARDED_BY(mu_) = 0;
};

// One of the `concurrency` callers of a closed loop. An answer starts the next request on the thread that delivers the
// answer. If the answer comes before `send` has returned, the sending loop starts the next request instead, so that the
// stack does not grow.
class Caller {
 public:
  Caller(Run* run, Permits* callers, const SendFn* send) : run_(run), callers_(callers), send_(send) {}

  void SendUntilTheEnd() {
    do {
      const SteadyTime now = Clock::Real().Now();
      if (now >= run_->end()) return callers_->GiveBack();
      phase_.store(Phase::kSending);
      (*send_)(run_->NextIdx(), [this, now](const Outcome& outcome) {
        run_->Record(now, outcome);
        if (phase_.exchange(Phase::kAnswered) == Phase::kSent) SendUntilTheEnd();
      });
    } while (phase_.exchange(Phase::kSent) == Phase::kAnswered);
  }

 private:
  enum class Phase { kSending, kSent, kAnswered };

  Run* const run_;
  Permits* const callers_;
  const SendFn* const send_;
  std::atomic<Phase> phase_{Phase::kSending};
};

void RunClosedLoop(const LoadOptions& options, const SendFn& send, Run* run) {
  Permits callers;
  std::vector<std::unique_ptr<Caller>> all;
  for (int i = 0; i < options.concurrency; ++i) {
    callers.Take(options.concurrency, run->end());
    all.push_back(std::make_unique<Caller>(run, &callers, &send));
  }
  for (const std::unique_ptr<Caller>& caller : all) caller->SendUntilTheEnd();
  callers.WaitForAll();
}

void RunOpenLoop(const LoadOptions& options, const SendFn& send, Run* run) {
  ArrivalSchedule schedule(options.arrivals, options.rate_per_s, options.seed);
  Permits in_flight;
  for (SteadyTime intended; (intended = run->start() + schedule.Next()) < run->end();) {
    std::this_thread::sleep_until(intended);
    if (!in_flight.Take(options.max_in_flight, run->end())) {
      run->RecordUnsent(intended);
      continue;
    }
    send(run->NextIdx(), [run, intended, &in_flight](const Outcome& outcome) {
      run->Record(intended, outcome);
      in_flight.GiveBack();
    });
  }
  in_flight.WaitForAll();
}

}  // namespace

int64_t LoadStats::num_failed() const {
  int64_t total = 0;
  for (const auto& [code, error] : errors) total += error.count;
  return total;
}

LoadStats GenerateLoad(const LoadOptions& options, const SendFn& send) {
  Run run(options);
  options.rate_per_s > 0 ? RunOpenLoop(options, send, &run) : RunClosedLoop(options, send, &run);
  return run.Finish();
}

ArrivalSchedule::ArrivalSchedule(Arrivals arrivals, double rate_per_s, uint64_t seed)
    : arrivals_(arrivals), rate_per_s_(rate_per_s), state_(seed) {}

std::chrono::nanoseconds ArrivalSchedule::Next() {
  now_s_ += GapSeconds();
  return std::chrono::nanoseconds(std::llround(now_s_ * 1e9));
}

double ArrivalSchedule::GapSeconds() {
  if (arrivals_ == Arrivals::kUniform) return 1 / rate_per_s_;
  return -std::log1p(-NextUniform(&state_)) / rate_per_s_;
}

}  // namespace switchyard
