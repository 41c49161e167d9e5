// Runs steps before a layer's first request, so that no request pays for one-time costs, such as compiling or loading
// kernels and touching pages for the first time.
//
// First every layer runs a step of one row, then every layer runs a step with as many rows as a step may have. Where
// that would take longer than the time that is left, because a row has thousands of experts, the layer runs steps of
// more and more rows instead, as many as fit. The rows are random, so that they reach all experts. These steps count in
// no metric and no statistic.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.h"
#include "server/requests/request.h"

namespace switchyard {

struct WarmUpOptions {
  int64_t full_rows = 1;  // rows of a full step
  // After this time no further step is started. The step under way is still waited for.
  std::chrono::milliseconds time_limit{5000};
  const Clock* clock = &Clock::Real();
};

// The functions through which the warm-up runs its steps.
struct WarmUpPort {
  std::function<void(std::shared_ptr<Request>)> enqueue;        // as Scheduler::Enqueue
  std::function<void(const std::shared_ptr<Request>&)> cancel;  // as Scheduler::Cancel
  // Called again and again; an error ends the warm-up.
  std::function<absl::Status()> should_stop;
};

// The group must be able to serve the layers. Returns the error of `should_stop`, or the error of a step that failed,
// which names the layer.
absl::Status WarmUp(const WarmUpOptions& options, const std::vector<std::shared_ptr<ServedLayer>>& layers,
                    const WarmUpPort& port);

}  // namespace switchyard
