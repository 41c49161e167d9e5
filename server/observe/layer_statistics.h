// Counts and times of one layer's requests and steps since the start. They feed the KServe API's ModelStatistics and
// Triton's metrics.
//
// Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "server/requests/request.h"

namespace switchyard {

// How often something happened and how long it took in all.
struct Tally {
  int64_t count = 0;
  int64_t total_us = 0;

  void Add(int64_t micros) {
    ++count;
    total_us += micros;
  }
};

// Why a request failed, in Triton's categories: no room or no time for it, given up by its caller, a failure of the
// server, or any other reason, which means that the request itself was wrong.
enum class FailureReason { kRejected, kCanceled, kBackend, kOther };
inline constexpr int kNumFailureReasons = 4;
// The reason's name, such as "REJECTED".
const char* FailureReasonName(FailureReason reason);
FailureReason ReasonOf(absl::StatusCode code);

class LayerStatistics {
 public:
  // Times of steps that have about the same number of rows.
  struct StepTally {
    Tally input;  // gate and plan, and copying rows to the links
    Tally infer;  // from submission to the last rank's result
  };
  struct Snapshot {
    Tally success;  // requests, from arrival to answer
    Tally failure;
    std::array<int64_t, kNumFailureReasons> failures_by_reason = {};
    // Stages of the requests in `success`, with equal counts. For a request that was split over several steps, the
    // times are sums over them.
    Tally queue;
    Tally input;
    Tally infer;
    Tally output;  // the rest: cutting out and converting answers
    int64_t num_steps = 0;
    absl::Time last_success = absl::UnixEpoch();
    std::map<int64_t, StepTally> steps;  // by rows, rounded up to a power of two
  };

  void RecordSuccess(const RequestStats& stats, int64_t total_us);
  void RecordFailure(absl::StatusCode code, int64_t total_us);
  void RecordStep(int64_t num_rows, int64_t input_us, int64_t infer_us);

  Snapshot snapshot() const;

 private:
  mutable Mutex mu_;
  Snapshot counts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
