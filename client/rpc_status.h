// Converts gRPC's status to absl::Status.
#pragma once

#include <grpcpp/support/status.h>

#include "base/status.h"

namespace switchyard {

// The same code and message; binary error details become the payload kStatusDetailsUrl (client.h).
absl::Status FromRpcStatus(const grpc::Status& status);

}  // namespace switchyard
