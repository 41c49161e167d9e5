// Keeps several steps in flight on a device: one thread enqueues them, and another waits for them in order and reports.
//
// A device computes several steps at once in *lanes*, which all its engines share. Submit enqueues a step in the next
// lane and returns; if all lanes are taken, it first waits for one. The completion thread reports the end of the step.
// A host engine computes the step on the caller's thread, so the step is done and reported when Submit returns.
//
// Every step is reported exactly once, in the order of submission. When a submitted step fails, its communicator is
// aborted, unless only combining its returned rows could not be enqueued.
//
// Both threads beat while they wait (base/heartbeat.h).
//
// Thread-safety: one thread calls Submit, Refuse and Drain.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/heartbeat.h"
#include "base/mutex.h"
#include "worker/steps/step_runner.h"

namespace switchyard {

// Called when the step has ended; on a device from the completion thread. On a device, the dispatch and combine times
// in `times` are the times to enqueue them, and expert_us is the time of the whole step from submission to its end.
using StepDoneFn = std::function<void(const absl::Status& status, const StepTimes& times)>;

class StepPipeline {
 public:
  // `num_lanes` is the engines' number of lanes, the same for all, or 0 if they compute on the host. `on_device_lost`
  // is called, from the thread that reports, when this process cannot compute steps any more. `heartbeat`, which may be
  // null, watches the completion thread if there is one, and outlives this.
  StepPipeline(int num_lanes, std::function<void(const absl::Status&)> on_device_lost, Heartbeat* heartbeat = nullptr);
  // Drains.
  ~StepPipeline();

  // The plan's memory may be freed when this returns; rows, output and communicator must stay until `done`.
  void Submit(const RankStep& step, StepDoneFn done);
  // Reports a step that cannot be submitted, after the steps before it.
  void Refuse(const absl::Status& why, StepDoneFn done);

  // Waits until every step has been reported. Steps that wait for a peer end when their communicator is aborted.
  void Drain();

 private:
  // A step that was enqueued or refused. `engine` is null for a refused step.
  struct Entry {
    ExpertEngine* engine = nullptr;
    Communicator* communicator = nullptr;
    int lane = 0;
    absl::Status begun;
    StepTimes times;
    SteadyTime begin;
    StepDoneFn done;
  };

  // Waits for a change of the entries, or only until it is time to beat.
  void WaitAndBeat() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  int TakeLane();
  void Push(Entry entry);
  void CompleteLoop();
  absl::Status Finish(const Entry& entry) const;
  void Complete(Entry& entry);

  const int num_lanes_;
  const std::function<void(const absl::Status&)> on_device_lost_;
  Heartbeat* const heartbeat_;

  // Submitting thread only.
  StepRunner runner_;
  int next_lane_ = 0;

  Mutex mu_;
  CondVar changed_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mu_);  // the first entry is being completed
  int lanes_taken_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread completer_;  // only runs if there are lanes
};

}  // namespace switchyard
