// The one place that converts between gRPC's status and ours. Codes are the same numbers by design.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "base/status.h"

namespace switchyard {

inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

inline absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace switchyard
