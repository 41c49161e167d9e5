// The bridge from NCCL's errors to Status: the call that failed, NCCL's name for the error and the last line it logged
// about it.
#pragma once

#include <nccl.h>

#include "base/status.h"

namespace switchyard {

// OK for ncclSuccess, and for ncclInProgress, which nonblocking calls return at first. UNAVAILABLE when a peer or the
// connection to it failed, FAILED_PRECONDITION when NCCL refuses the set-up, INVALID_ARGUMENT for ncclInvalidArgument,
// otherwise INTERNAL. `comm` may be null.
absl::Status NcclStatus(ncclResult_t result, absl::string_view call, ncclComm_t comm);

}  // namespace switchyard
