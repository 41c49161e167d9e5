// Reads what a running server holds: memory, descriptors, threads, admitted requests.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "tests/e2e/server_process.h"

namespace switchyard {

struct ProcessUsage {
  int64_t rss_bytes = 0;
  int64_t peak_rss_bytes = 0;  // since the start, or since ResetPeakRss
  int num_fds = 0;
  int num_threads = 0;
};

// All zero when there is no such process, or when it is another user's.
ProcessUsage UsageOf(pid_t pid);
// Restarts the measurement of the peak.
void ResetPeakRss(pid_t pid);

// The value of a metric without labels; -1 when the metric does not exist.
double MetricValue(const std::string& metrics, const std::string& name);

struct AdmittedWork {
  int64_t requests = -1;
  int64_t rows = -1;
  int64_t bytes = -1;
  bool none() const { return requests == 0 && rows == 0 && bytes == 0; }
};
AdmittedWork AdmittedBy(const ServerProcess& server);

// Waits until nothing is admitted any more. Returns what is still admitted when `timeout` has passed.
AdmittedWork WaitUntilIdle(const ServerProcess& server, std::chrono::milliseconds timeout);

}  // namespace switchyard
