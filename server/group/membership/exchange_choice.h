// Which exchange the ranks of a group move rows with. It is chosen here and nowhere else, anew whenever a group forms,
// because a replacement may be on another host than the worker that it replaces. PrepareGroup tells the workers.
//
// Every worker's Hello names the exchanges that it has, the best first, and the host whose memory it shares.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "proto/worker.pb.h"

namespace switchyard {

// `wanted` is the flag --exchange. "auto" is the first worker's best exchange that all of them have. Shared memory
// counts only for workers of one host and user. FailedPrecondition says what the last worker lacks, given that those
// before it agree. `workers` is not empty.
absl::StatusOr<std::string> ChooseExchange(const std::string& wanted, const std::vector<const worker::Hello*>& workers);

}  // namespace switchyard
