// A CommunicatorFactory whose ranks are threads of one process. Bytes really move, by memcpy, and tests can cause every
// failure of a network without one.
//
// Ranks of one group must come from the same factory. Counts that disagree fail the call on every rank
// (INVALID_ARGUMENT naming both); an aborted or destroyed rank fails the others' calls with UNAVAILABLE. A call waits
// for its peers without a time limit, because only Abort() or destruction can keep a peer's thread from coming.
#pragma once

#include <memory>

#include "moe/exchange/communicator.h"

namespace switchyard {

std::unique_ptr<CommunicatorFactory> CreateInProcessFactory();

}  // namespace switchyard
