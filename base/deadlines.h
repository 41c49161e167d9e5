// Calls functions when their time has come: the time limits of many requests, on one thread.
//
//   Deadlines::Key key = deadlines.NewKey(Clock::Real().Now() + limit);
//   deadlines.Add(key, [request] { Expire(request); });
//   …
//   deadlines.Remove(key);  // it was answered in time
//
// Made for limits that are seldom reached: adding one wakes the thread only when it is earlier than what the thread
// waits for, and removing one never does.
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

namespace switchyard {

class Deadlines {
 public:
  // A time, and a number that tells those of one time apart.
  struct Key {
    SteadyTime when;
    uint64_t number = 0;
    auto operator<=>(const Key&) const = default;
  };

  Deadlines();
  ~Deadlines();

  Key NewKey(SteadyTime when) { return {when, next_number_.fetch_add(1, std::memory_order_relaxed)}; }

  // `expire` is called once on this object's thread, soon after `key.when`, unless it is removed before. Others wait
  // meanwhile. It may add and remove.
  void Add(const Key& key, std::function<void()> expire);

  // Returns whether it was there: otherwise its function ran, or runs now, or there was none.
  bool Remove(const Key& key);

  // Waits for the function that runs; no other will. The rest still works, to no effect.
  void Stop();

 private:
  void Loop();

  std::atomic<uint64_t> next_number_{1};

  Mutex mu_;
  CondVar earlier_;
  std::map<Key, std::function<void()>> pending_ ABSL_GUARDED_BY(mu_);
  SteadyTime wakes_at_ ABSL_GUARDED_BY(mu_) = SteadyTime::max();  // the thread, by itself
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace switchyard
