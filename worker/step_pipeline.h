// Keeps several steps on their way through a device: one thread enqueues them, another waits for them in order and
// reports.
//
// A device computes several steps at once in *lanes*, which all its engines share. Submit enqueues a step in the next
// lane, waiting for one when all are taken, and returns; the completion thread tells of its end. A host engine has done
// a step when Submit returns, on the caller's thread, without a hop to another one.
//
// Every step is reported exactly once, in the order of submission. A step that failed has aborted its communicator.
//
// Thread-safety: one thread calls Submit, Refuse and Drain.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/mutex.h"
#include "worker/step_runner.h"

namespace switchyard {

// Called with the step's end; on a device from the completion thread. On a device, `times` has the time to enqueue the
// dispatch and the combination, and as the experts' time that of the whole step, from submission to its end.
using StepDoneFn = std::function<void(const absl::Status& status, const StepTimes& times)>;

class StepPipeline {
 public:
  // `num_lanes` is what all engines have, or 0 when they compute on the host. `on_device_lost`, told that no step can
  // be computed in this process any more, is called from the thread that reports.
  StepPipeline(int num_lanes, std::function<void(const absl::Status&)> on_device_lost);
  // Drains.
  ~StepPipeline();

  // Plan views may go when this returns; rows, output and communicator stay until `done`.
  void Submit(const Step& step, StepDoneFn done);
  // Reports, in its turn, a step that cannot be submitted.
  void Refuse(const absl::Status& why, StepDoneFn done);

  // Waits until every step was reported. Those that wait for a peer end when their communicator is aborted.
  void Drain();

 private:
  // A step that was enqueued, or refused: then without an engine.
  struct Entry {
    ExpertEngine* engine = nullptr;
    Communicator* communicator = nullptr;
    int lane = 0;
    absl::Status begun;
    StepTimes times;
    SteadyTime begin;
    StepDoneFn done;
  };

  int TakeLane();
  void Push(Entry entry);
  void CompleteLoop();
  void Complete(Entry& entry);

  const int num_lanes_;
  const std::function<void(const absl::Status&)> on_device_lost_;

  // Submitting thread only.
  StepRunner runner_;
  int next_lane_ = 0;

  Mutex mu_;
  CondVar changed_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mu_);  // the front one is being completed
  int lanes_taken_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread completer_;  // only with lanes
};

}  // namespace switchyard
