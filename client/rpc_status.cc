#include "client/rpc_status.h"

#include "client/client.h"

namespace switchyard {

absl::Status FromRpcStatus(const grpc::Status& status) {
  // The two enumerations share their numbers.
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (!result.ok() && !status.error_details().empty()) {
    result.SetPayload(kStatusDetailsUrl, absl::Cord(status.error_details()));
  }
  return result;
}

}  // namespace switchyard
