// Checks the wishes of a request for one layer that the native and the KServe API have in common: its gate and its
// place in the queue.
#pragma once

#include <cstdint>
#include <optional>

#include "base/status.h"
#include "server/requests/request.h"

namespace switchyard {

// The caller's choice among a layer's gates; unchecked.
struct GateWish {
  int64_t gate_idx = 0;
  int64_t top_k = 0;  // 0 for the gate's own number
  std::optional<double> capacity_factor;
};

// Sets the request's gate, top_k, capacity and row cost. The request must have its layer. InvalidArgument names
// gate_index, top_k or capacity_factor, what was expected and what came.
absl::Status ChooseGate(const GateWish& wish, int64_t max_batch_rows, Request* request);

// How a caller wants its request to be queued; unchecked.
struct QueueWish {
  int64_t priority = 0;    // 0 for normal
  int64_t timeout_us = 0;  // 0 for the server's default
};

// Sets the request's priority and queue timeout. InvalidArgument names priority or `timeout_name`, what was expected
// and what came.
absl::Status ChooseQueueing(const QueueWish& wish, const char* timeout_name, Request* request);

}  // namespace switchyard
