#include "server/observe/layer_statistics.h"

#include <algorithm>
#include <bit>

#include "absl/time/clock.h"

namespace switchyard {

const char* FailureReasonName(FailureReason reason) {
  static constexpr std::array<const char*, kNumFailureReasons> kNames = {"REJECTED", "CANCELED", "BACKEND", "OTHER"};
  return kNames[static_cast<size_t>(reason)];
}

FailureReason ReasonOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kUnavailable:
      return FailureReason::kRejected;
    case absl::StatusCode::kCancelled:
      return FailureReason::kCanceled;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kUnknown:
      return FailureReason::kBackend;
    default:
      return FailureReason::kOther;
  }
}

void LayerStatistics::RecordSuccess(const RequestStats& stats, int64_t total_us) {
  const int64_t input_us = stats.gate_us + stats.plan_us;
  const absl::Time now = absl::Now();
  MutexLock lock(&mu_);
  counts_.success.Add(total_us);
  counts_.queue.Add(stats.queue_us);
  counts_.input.Add(input_us);
  counts_.infer.Add(stats.step_us);
  // The steps of a split request overlap, so their sums may exceed the time that the request took.
  counts_.output.Add(std::max<int64_t>(0, total_us - stats.queue_us - input_us - stats.step_us));
  counts_.last_success = now;
}

void LayerStatistics::RecordFailure(absl::StatusCode code, int64_t total_us) {
  MutexLock lock(&mu_);
  ++counts_.failures_by_reason[static_cast<size_t>(ReasonOf(code))];
  counts_.failure.Add(total_us);
}

void LayerStatistics::RecordStep(int64_t num_rows, int64_t input_us, int64_t infer_us) {
  const auto size = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_rows)));
  MutexLock lock(&mu_);
  ++counts_.num_steps;
  StepTally& tally = counts_.steps[size];
  tally.input.Add(input_us);
  tally.infer.Add(infer_us);
}

LayerStatistics::Snapshot LayerStatistics::snapshot() const {
  MutexLock lock(&mu_);
  return counts_;
}

}  // namespace switchyard
