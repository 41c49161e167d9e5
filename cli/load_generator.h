// Sends requests on a schedule and measures their outcome and latency.
//
// Closed loop: `concurrency` requests are always in flight; the end of each starts the next. It shows the throughput
// that the service reaches when callers wait for it. Open loop: requests start at times drawn beforehand at
// `rate_per_s`, whether earlier ones have ended or not. It shows the latency that callers see at that rate. A request
// that could not be sent on time, because the cap on requests in flight was reached, is still timed from when it was
// due. So a stall counts against every request that it delayed.
//
// Only requests whose intended time lies in the `duration` after the `warmup` are measured.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "base/mutex.h"
#include "base/status.h"
#include "cli/histogram.h"

namespace switchyard {

enum class Arrivals { kPoisson, kUniform };

struct LoadOptions {
  std::chrono::nanoseconds warmup{0};
  std::chrono::nanoseconds duration = std::chrono::seconds(10);

  // Closed loop, when rate_per_s is 0.
  int concurrency = 1;

  // Open loop.
  double rate_per_s = 0;
  Arrivals arrivals = Arrivals::kPoisson;
  uint64_t seed = 1;
  int max_in_flight = 4096;  // bounds the memory that an overload takes
};

struct ErrorCount {
  int64_t count = 0;
  std::string first_message;
};

struct LoadStats {
  int64_t num_ok = 0;
  int64_t num_bytes = 0;   // sent and received by the requests that succeeded
  int64_t num_unsent = 0;  // due within the run, but held back until its end by the cap on requests in flight
  std::map<absl::StatusCode, ErrorCount> errors;
  LatencyHistogram latency;  // of the requests that succeeded
  double elapsed_s = 0;      // from the end of the warmup to the last measured answer, but at least the duration

  int64_t num_failed() const;
};

struct Outcome {
  absl::Status status;
  int64_t num_bytes = 0;
};
// Starts request number `idx` (0, 1, …). Calls `done` exactly once, on any thread, possibly before it returns.
using DoneFn = std::function<void(Outcome)>;
using SendFn = std::function<void(int64_t idx, DoneFn done)>;

// Runs the load and returns when every request has ended.
LoadStats GenerateLoad(const LoadOptions& options, const SendFn& send);

// The intended times of an open loop, counted from its start. The same seed gives the same times. Not thread-safe.
class ArrivalSchedule {
 public:
  ArrivalSchedule(Arrivals arrivals, double rate_per_s, uint64_t seed);
  std::chrono::nanoseconds Next();

 private:
  double GapSeconds();

  const Arrivals arrivals_;
  const double rate_per_s_;
  uint64_t state_;
  double now_s_ = 0;
};

}  // namespace switchyard
