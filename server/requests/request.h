// One Forward request on its way through the front, and the batches it is cut into.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/deadlines.h"
#include "base/tensor/dtype.h"
#include "moe/gating/routing.h"
#include "server/models/served_model.h"
#include "server/requests/admission.h"

namespace switchyard {

// Rows as they came over the wire: row-major bytes in several chunks, which the owner keeps alive. A row, even one
// element, may straddle chunks.
class ChunkedRows {
 public:
  ChunkedRows() = default;
  ChunkedRows(std::vector<std::span<const std::byte>> chunks, std::shared_ptr<const void> owner)
      : chunks_(std::move(chunks)), owner_(std::move(owner)) {}

  size_t size_bytes() const;

  // A place among the bytes.
  struct Position {
    size_t chunk_idx = 0;
    size_t offset = 0;  // in the chunk
  };

  // Converts the next `num_elements` of type `from` to `to` at `dst`, and moves past them.
  void ReadNext(DType from, size_t num_elements, DType to, std::byte* dst) {
    next_ = ReadAt(next_, from, num_elements, to, dst);
  }
  // Where ReadNext goes on; moves past `num_bytes`, which are to be read from there.
  Position SkipNext(size_t num_bytes);
  // As ReadNext from another place; returns the place behind. Several threads may read at once.
  Position ReadAt(Position at, DType from, size_t num_elements, DType to, std::byte* dst) const;

 private:
  std::vector<std::span<const std::byte>> chunks_;
  std::shared_ptr<const void> owner_;
  Position next_;
};

// The costs of one request, summed over its steps.
struct RequestStats {
  int num_steps = 0;
  int64_t queue_us = 0;
  int64_t gate_us = 0;
  int64_t plan_us = 0;
  int64_t step_us = 0;
  int64_t rows_crossed = 0;
  int replays = 0;
  int64_t upload_us = 0;  // the part of gate_us that copies rows to the links
  // When its first step was begun and planned, and its last one computed; set once it has been in a step.
  SteadyTime first_started, first_planned, last_computed;
};

// Some of a request's output rows, in its type: bytes that `owner` keeps alive.
struct OutputPart {
  int64_t begin_row = 0;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// Levels of urgency. A level's requests leave before those of the levels after it.
enum class Priority { kHigh = 1, kUsual = 2, kBackground = 3 };
constexpr int kNumPriorities = 3;

// A request as its caller asked for it. Constant once the request is enqueued.
struct RequestAsk {
  std::shared_ptr<ServedLayer> layer;  // keeps the model that the layer belongs to
  DType dtype = DType::kF32;           // of the rows, in and out
  int64_t num_rows = 0;
  int gate_idx = 0;
  int top_k = 1;          // the gate's own, or the one that the caller asked for instead
  CapacitySpec capacity;  // likewise
  // The room that one row takes in a step, in rows: more than 1 when the caller asked for more experts per row than the
  // layer's gates choose, because links and devices are sized for the layer's own.
  int64_t row_cost = 1;
  bool return_routing = false;
  bool return_balance_loss = false;
  bool is_warm_up = false;  // no metric counts its steps, which carry no other request's rows
  std::string caller_id;    // the id that the caller gave, or its first bytes, for log and traces

  // How the request queues.
  std::string client;                    // see RequestIdentity: clients take turns …
  std::shared_ptr<const Holder> holder;  // … and share the budgets of the sender that names them
  Priority priority = Priority::kUsual;
  SteadyTime arrival;
  int64_t timeout_us = 0;                      // from arrival to answer; 0 for none
  std::chrono::microseconds queue_timeout{0};  // the request ends when no row has left the queue by then; 0 for never
  SteadyTime deadline = SteadyTime::max();     // no row leaves the queue after it: the call's, or arrival + timeout_us
  SteadyTime answer_by = SteadyTime::max();    // the request ends when it is not answered by then

  // Called exactly once, when the outcome is complete or the request has failed.
  std::function<void(absl::Status)> done;

  // The choices of one row: the gate's top_k experts, then the shared ones.
  int num_choices() const { return top_k + layer->spec.num_shared; }
};

// How far a request is.
struct RequestProgress {
  ChunkedRows rows;                    // read in order by the holder of the dispatch baton
  bool is_routed = false;              // the outcome's routing is known; the baton's holder's
  int64_t rows_unfinished = 0;         // guarded by the scheduler's lock
  bool has_left = false;               // its first rows have left the queue; likewise, until it is not queued any more
  std::atomic<bool> completed{false};  // `done` was called, or is about to be
  Deadlines::Key time_limit;           // the scheduler's timer for answer_by; number 0 for none
};

// The answer to a request. Steps fill it under the scheduler's lock; after `done` it belongs to the caller.
struct RequestOutcome {
  // The output rows, [num_rows, hidden_dim] in the request's dtype, in parts: as steps bring them, and in the order of
  // the rows once all are there.
  std::vector<OutputPart> output;
  Routing routing;  // of every row, when it was asked for or all rows are gated together; shared experts come last
  double balance_loss = 0;
  RequestStats stats;
  // The request's part of the budget of bytes, held until the answer has been sent.
  std::shared_ptr<const void> held_bytes;
};

// Owned jointly by the RPC, the batcher's queue and the steps that carry its rows.
struct Request {
  RequestAsk ask;
  RequestProgress progress;
  RequestOutcome outcome;

  // Whether the routing of a row depends on the request's other rows. Such rows are gated together, before the first of
  // them leaves the queue.
  bool IsRoutedWhole() const;
};

// DeadlineExceeded, with the limit of the request that has passed by `now`, or its deadline if that is near.
absl::Status WhyExpired(const Request& request, SteadyTime now);

// Rows [begin_row, begin_row + num_rows) of a request.
struct Piece {
  std::shared_ptr<Request> request;
  int64_t begin_row = 0;
  int64_t num_rows = 0;
};

// Rows of one layer that go through one step together.
struct Batch {
  ServedLayer* layer = nullptr;  // its requests share it
  std::vector<Piece> pieces;
  int64_t num_rows = 0;
};

}  // namespace switchyard
