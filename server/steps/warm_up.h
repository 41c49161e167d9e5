// Steps that are run before a layer's first request, so that no request pays for what happens once: kernels that are
// compiled or loaded, pages that are touched first.
//
// Every layer runs a step of one row, then every layer one of all rows that a step may have, with random rows, which
// reach all experts. They count in no metric and no statistic.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.h"
#include "server/requests/request.h"

namespace switchyard {

struct WarmUpOptions {
  int64_t full_rows = 1;  // of a full step
  // When this is over no further step is started. The one under way is waited for.
  std::chrono::milliseconds time_limit{5000};
};

// What steps are run through.
struct WarmUpPort {
  std::function<void(std::shared_ptr<Request>)> enqueue;        // as Scheduler::Enqueue
  std::function<void(const std::shared_ptr<Request>&)> cancel;  // as Scheduler::Cancel
  // Asked all along; what it says, if not OK, ends the warm-up.
  std::function<absl::Status()> should_stop;
};

// The layers can be served. Returns what should_stop says, or a step's failure, which names the layer.
absl::Status WarmUp(const WarmUpOptions& options, const std::vector<std::shared_ptr<ServedLayer>>& layers,
                    const WarmUpPort& port);

}  // namespace switchyard
