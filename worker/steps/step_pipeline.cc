#include "worker/steps/step_pipeline.h"

#include <pthread.h>

#include <utility>

namespace switchyard {

StepPipeline::StepPipeline(int num_lanes, std::function<void(const absl::Status&)> on_device_lost, Heartbeat* heartbeat)
    : num_lanes_(num_lanes), on_device_lost_(std::move(on_device_lost)), heartbeat_(heartbeat) {
  if (num_lanes_ > 0) completer_ = std::thread([this] { CompleteLoop(); });
}

StepPipeline::~StepPipeline() {
  if (!completer_.joinable()) return;
  Drain();
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  completer_.join();
}

void StepPipeline::Submit(const RankStep& step, StepDoneFn done) {
  Entry entry;
  entry.engine = step.engine;
  entry.communicator = step.communicator;
  entry.lane = TakeLane();
  entry.begin = Clock::Real().Now();
  entry.begun = runner_.Begin(step, entry.lane, &entry.times);
  entry.done = std::move(done);
  Push(std::move(entry));
}

void StepPipeline::Refuse(const absl::Status& why, StepDoneFn done) {
  Entry entry;
  entry.begun = why;
  entry.done = std::move(done);
  Push(std::move(entry));
}

void StepPipeline::Drain() {
  MutexLock lock(&mu_);
  const Heartbeat::Doing waiting(Heartbeat::Activity::kWaiting);
  while (!entries_.empty()) WaitAndBeat();
}

void StepPipeline::WaitAndBeat() {
  changed_.WaitFor(&mu_, Heartbeat::kInterval);
  Heartbeat::Beat();
}

// Steps end in order, so lanes become free in the order in which they were taken.
int StepPipeline::TakeLane() {
  if (num_lanes_ == 0) return 0;
  MutexLock lock(&mu_);
  if (lanes_taken_ == num_lanes_) {
    const Heartbeat::Doing waiting(Heartbeat::Activity::kWaiting);
    while (lanes_taken_ == num_lanes_) WaitAndBeat();
  }
  ++lanes_taken_;
  return std::exchange(next_lane_, (next_lane_ + 1) % num_lanes_);
}

void StepPipeline::Push(Entry entry) {
  if (num_lanes_ == 0) return Complete(entry);
  MutexLock lock(&mu_);
  entries_.push_back(std::move(entry));
  changed_.SignalAll();
}

void StepPipeline::CompleteLoop() {
  pthread_setname_np(pthread_self(), "completion");
  if (heartbeat_ != nullptr) heartbeat_->WatchThisThread();
  while (true) {
    Entry* entry = nullptr;
    {
      MutexLock lock(&mu_);
      while (entries_.empty() && !stopping_) WaitAndBeat();
      if (entries_.empty()) return;
      entry = &entries_.front();  // stays valid when entries are added, because a deque does not move its elements
    }
    Complete(*entry);
    MutexLock lock(&mu_);
    if (entry->engine != nullptr) --lanes_taken_;
    entries_.pop_front();
    changed_.SignalAll();
  }
}

absl::Status StepPipeline::Finish(const Entry& entry) const {
  if (num_lanes_ == 0) return StepRunner::Finish(*entry.engine, *entry.communicator, entry.lane);
  const Heartbeat::Doing waiting(Heartbeat::Activity::kWaiting);
  return StepRunner::Finish(*entry.engine, *entry.communicator, entry.lane);
}

void StepPipeline::Complete(Entry& entry) {
  absl::Status status = entry.begun;
  if (entry.engine != nullptr) {
    // Also after a failure to enqueue, because the lane is free only when the work enqueued before the failure has
    // ended.
    const absl::Status finished = Finish(entry);
    if (status.ok()) status = finished;
    if (num_lanes_ > 0) entry.times.expert_us = MicrosBetween(entry.begin, Clock::Real().Now());
  }
  entry.done(status, entry.times);
  if (status.ok() || entry.engine == nullptr) return;
  if (absl::Status device = entry.engine->CheckDevice(); !device.ok()) on_device_lost_(device);
}

}  // namespace switchyard
