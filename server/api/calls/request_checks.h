// The steps of a request for one layer that the native and the KServe API have in common: its gate, its place in the
// queue, its output, its traces in metrics and log.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "rpc/slice_stream.h"
#include "server/front/front.h"
#include "server/requests/request_identity.h"

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

// The output rows of an answered request, where they lie. They keep the request's part of the budget of bytes.
TensorSlices OutputSlices(const Request& request);

// Identifies the caller from the call's metadata. The id goes back to the caller as trailing metadata `x-request-id`.
// Call it once for a call, before the call is finished.
RequestIdentity IdentifyCall(grpc::CallbackServerContext* context);

// Records that a submitted request was answered.
void RecordAnswer(Front& front, const Request& request, const absl::Status& status, const RequestIdentity& identity);
// Records that a request was refused before it was submitted; `layer` is null when the request named no known layer.
void RecordRefusal(Front& front, const ServedLayer* layer, const absl::Status& status, const RequestIdentity& identity);

// Adds trailing metadata that tells the caller how long to wait before it tries again, if it should.
void AddPushback(const absl::Status& status, grpc::CallbackServerContext* context);

}  // namespace switchyard
