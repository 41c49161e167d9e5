// Calls each function at its deadline, by a clock of the owner's choice. One thread serves the time limits of many
// requests; it sleeps in real time, so a fake clock that advances does not wake it. Without a thread, the owner calls
// RunDue when next() has passed.
//
//   Deadlines::Key key = deadlines.NewKey(Clock::Real().Now() + limit);
//   deadlines.Add(key, [request] { Expire(request); });
//   …
//   deadlines.Remove(key);  // it was answered in time
//
// Made for limits that are seldom reached: Add wakes the thread only if the new deadline is earlier than the one that
// the thread waits for, and Remove never wakes it.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <thread>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/threads.h"

namespace switchyard {

class Deadlines {
 public:
  // A deadline, and a number that distinguishes keys with the same deadline.
  struct Key {
    SteadyTime when;
    uint64_t number = 0;
    auto operator<=>(const Key&) const = default;
  };

  // `clock` outlives this.
  explicit Deadlines(Threads threads = Threads::kOwn, const Clock& clock = Clock::Real());
  ~Deadlines();

  Key NewKey(SteadyTime when) { return {when, next_number_.fetch_add(1, std::memory_order_relaxed)}; }

  // Calls `expire` once, on this object's thread or in RunDue, soon after `key.when`, unless the key is removed before.
  // Other functions wait while it runs. `expire` may call Add and Remove.
  void Add(const Key& key, std::function<void()> expire);

  // Returns whether the function was still pending. Otherwise it has run, is running, was removed before, or was never
  // added.
  bool Remove(const Key& key);

  // With Threads::kNone: calls the functions whose deadlines have passed, in order.
  void RunDue();
  // The earliest deadline; SteadyTime::max() when there is none.
  SteadyTime next() const;

  // Waits for the running function to return; no function runs afterwards. The other methods may still be called,
  // without effect.
  void Stop();

 private:
  void Loop();
  // Takes the function whose deadline passed first out; null when none has passed.
  std::function<void()> TakeDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  SteadyTime NextLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Clock& clock_;
  std::atomic<uint64_t> next_number_{1};

  mutable Mutex mu_;
  CondVar earlier_;
  std::map<Key, std::function<void()>> pending_ ABSL_GUARDED_BY(mu_);
  SteadyTime wakes_at_ ABSL_GUARDED_BY(mu_) = SteadyTime::max();  // when the thread wakes by itself
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace switchyard
