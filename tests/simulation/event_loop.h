// The simulation's time and its order of events: a queue of functions, each with the time at which it runs. The next
// one moves the fake clock to its time. Events of one time run in the order in which they were added.
//
// Everything of a run happens here, on one thread, so equal seeds give equal runs. A hash over everything that was
// noted shows it.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tests/simulation/random.h"

namespace switchyard::simulation {

class EventLoop {
 public:
  using Event = std::function<void()>;

  EventLoop(uint64_t seed, bool prints) : random_(seed), prints_(prints) { clock_.Advance(std::chrono::hours(1)); }

  SteadyTime now() const { return now_; }
  const Clock& clock() const { return clock_; }
  Random& random() { return random_; }
  Nanos elapsed() const { return now_ - start_; }

  void At(SteadyTime when, Event event);
  void After(Nanos delay, Event event) { At(now_ + delay, std::move(event)); }
  // When the next event comes; SteadyTime::max() when there is none.
  SteadyTime next() const { return events_.empty() ? SteadyTime::max() : events_.top().when; }
  // Runs the next event. Returns false when there is none.
  bool RunNext();
  // Called after every event.
  void SetAfterEach(Event after_each) { after_each_ = std::move(after_each); }
  void Clear() { events_ = {}; }
  bool empty() const { return events_.empty(); }
  int64_t num_run() const { return num_run_; }

  // Adds something that happened to the hash, and prints it when the run is traced. `what` is a constant.
  void Note(const char* what, int64_t first = 0, int64_t second = 0, int64_t third = 0);
  // Prints a text when the run is traced; not part of the hash.
  bool prints() const { return prints_; }
  void Print(const std::string& text) const;
  uint64_t hash() const { return hash_; }

 private:
  struct Entry {
    SteadyTime when;
    int64_t number;
    mutable Event event;
    bool operator<(const Entry& other) const {
      return when != other.when ? when > other.when : number > other.number;  // the earliest is the top
    }
  };

  Random random_;
  const bool prints_;
  FakeClock clock_;
  SteadyTime start_ = clock_.Now() + std::chrono::hours(1);
  SteadyTime now_ = start_;
  std::priority_queue<Entry> events_;
  Event after_each_;
  int64_t num_added_ = 0, num_run_ = 0;
  uint64_t hash_ = 0;
};

}  // namespace switchyard::simulation
