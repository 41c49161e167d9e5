#include "client/rpc_status.h"

#include "client/client.h"
#include "rpc/grpc_status.h"

namespace switchyard {

absl::Status FromRpcStatus(const grpc::Status& status) {
  absl::Status result = FromGrpcStatus(status);
  if (!result.ok() && !status.error_details().empty()) {
    result.SetPayload(kStatusDetailsUrl, absl::Cord(status.error_details()));
  }
  return result;
}

}  // namespace switchyard
