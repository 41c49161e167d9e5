// Shows other threads whether a thread gets on, and what it is doing.
//
//   Heartbeat heartbeat;                      // shared with those who look
//   heartbeat.WatchThisThread();              // on the watched thread, once
//   Heartbeat::Beat();                        // anywhere below on that thread: it gets on
//   Heartbeat::Doing doing(Heartbeat::Activity::kWaiting, peer);  // … until the end of the scope
//   heartbeat.Look();                         // on any thread
//
// `moves` of two looks differ if the thread did anything between them: it counts beats and milliseconds of CPU time. A
// long computation thus needs no beats. A thread that waits beats every kInterval, so that it can be told from one that
// is stopped. Only while it connects may it stand still.
//
// The static functions do nothing on a thread that is not watched, so that libraries may call them anywhere. They cost
// a few relaxed stores.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>

#include "base/ids.h"

namespace switchyard {

class Heartbeat {
 public:
  // The longest time between two beats of a thread that waits.
  static constexpr std::chrono::milliseconds kInterval{250};
  static constexpr int kNoPeer = -1;

  enum class Activity : uint8_t {
    kIdle = 0,
    kWorking = 1,
    kWaiting = 2,     // for a peer, or for a device when no peer is named
    kConnecting = 3,  // in calls that cannot beat
  };

  struct View {
    int64_t moves = 0;
    Activity activity = Activity::kIdle;
    int peer = kNoPeer;     // the rank that the thread waits for or connects to, if it is known
    int64_t num_waits = 0;  // grows with each wait that begins, so that a long wait can be told from many short ones
    Epoch epoch;            // of SetStep
    StepId step;
  };

  // Watches the calling thread, which must be the only one. Views are empty before.
  void WatchThisThread();
  bool is_watching() const { return is_watching_.load(std::memory_order_acquire); }
  // Thread-safe.
  View Look() const;

  // On the watched thread: the step that it works on.
  void SetStep(Epoch epoch, StepId step);

  static void Beat();

  // Says what the calling thread does, from construction to destruction. Scopes nest.
  class Doing {
   public:
    explicit Doing(Activity activity, int peer = kNoPeer);
    ~Doing();
    Doing(const Doing&) = delete;
    Doing& operator=(const Doing&) = delete;

   private:
    uint64_t before_ = 0;
  };

 private:
  std::atomic<bool> is_watching_{false};
  clockid_t cpu_clock_ = 0;  // constant once is_watching_
  std::atomic<int64_t> beats_{0};
  std::atomic<uint64_t> doing_{0};  // activity and peer in one
  std::atomic<int64_t> num_waits_{0};
  std::atomic<int64_t> epoch_{0};
  std::atomic<int64_t> step_{0};
};

}  // namespace switchyard
