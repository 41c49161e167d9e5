// A CommunicatorFactory whose ranks are threads of one process: bytes really move, by memcpy, and every failure that a
// network shows can be had without one.
//
// Ranks of one group must come from the same factory. Counts that disagree fail the call on every rank
// (INVALID_ARGUMENT naming both); an aborted or destroyed rank fails the others' calls with UNAVAILABLE. A call waits
// for its peers without limit, since nothing but Abort() or destruction can stop a thread from coming.
#pragma once

#include <memory>

#include "moe/exchange/communicator.h"

namespace switchyard {

std::unique_ptr<CommunicatorFactory> CreateInProcessFactory();

}  // namespace switchyard
