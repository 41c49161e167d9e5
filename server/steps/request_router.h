// Routes the rows of a request together if the routing depends on all of them, because experts have a capacity or the
// caller wants the balance loss. Such a request is gated before its first rows leave the queue, however many steps it
// is cut into. Other requests are gated step by step, together with rows of other callers.
#pragma once

#include "server/requests/request.h"

namespace switchyard {

// Thread-compatible.
class RequestRouter {
 public:
  // Gates all rows in fp32, drops the choices that exceed the capacity, and fills request.outcome.routing and
  // request.outcome.balance_loss. The cursor of `request.progress.rows` must be at the first row, and stays there.
  absl::Status Route(Request& request);

 private:
  absl::Status GateAll(Request& request, ScoreStats* stats);

  HostBuffer rows_;  // a block of the request's rows in fp32
};

// Copies the choices of `num_rows` rows. `to` has at least as many choices per row as `from`; the additional ones
// become dropped choices.
void CopyChoices(const Routing& from, int64_t from_row, int64_t num_rows, int64_t to_row, Routing* to);

}  // namespace switchyard
