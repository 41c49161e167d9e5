#pragma once

#include <grpc/support/time.h>

#include "absl/time/time.h"

namespace switchyard {

// The end of `timeout` from now on, for gRPC's calls. It is by the monotonic clock, because gRPC reads a time of the
// wall clock again at each step of a call, so setting that clock meanwhile would move the end.
inline gpr_timespec DeadlineAfter(absl::Duration timeout) {
  const gpr_timespec span = gpr_time_from_micros(absl::ToInt64Microseconds(timeout), GPR_TIMESPAN);
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), span);
}

}  // namespace switchyard
