// Routes the rows of requests whose routing depends on all of them: where experts have a capacity, or the caller wants
// the balance loss. Such a request is gated before its first rows leave, however many steps it is cut into; others are
// gated step by step, with the rows of strangers.
#pragma once

#include "server/requests/request.h"

namespace switchyard {

// Thread-compatible.
class RequestRouter {
 public:
  // Gates all rows, in fp32, drops what exceeds the capacity, and fills request.outcome.routing and
  // request.outcome.balance_loss. The rows' cursor must still be at their first one, and stays there.
  absl::Status Route(Request& request);

 private:
  absl::Status GateAll(Request& request, ScoreStats* stats);

  HostBuffer rows_;  // a block of them in fp32
};

// Copies the choices of `num_rows` rows, as many as a row of `from` has; the other columns of `to`, which has no fewer,
// become dropped choices.
void CopyChoices(const Routing& from, int64_t from_row, int64_t num_rows, int64_t to_row, Routing* to);

}  // namespace switchyard
