// Tells who makes a call and until when.
#pragma once

#include <grpcpp/grpcpp.h>

#include "server/config/options.h"
#include "server/requests/request_identity.h"

namespace switchyard {

// Identifies the caller from the call's metadata. The id goes back to the caller as trailing metadata `x-request-id`.
// Call it once for a call, before the call is finished.
RequestIdentity IdentifyCall(const ServerOptions& options, grpc::CallbackServerContext* context);

}  // namespace switchyard
