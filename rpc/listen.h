// Starts a gRPC server on one address, with an error that names the flag when the port cannot be had.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "base/status.h"
#include "rpc/address.h"

namespace switchyard {

// Port 0 takes a free one; `bound_port` tells which. A port that another process listens on is refused, not shared.
inline absl::StatusOr<std::unique_ptr<grpc::Server>> StartServer(
    grpc::ServerBuilder& builder, const std::shared_ptr<grpc::ServerCredentials>& credentials, const std::string& host,
    int port, absl::string_view flag, int* bound_port) {
  const std::string address = JoinHostPort(host, port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(address, credentials, bound_port);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server != nullptr && *bound_port > 0) return server;
  return absl::UnavailableError(absl::StrCat(flag, ": cannot listen on ", address,
                                             "; is the port in use, or the host not this machine's? (port 0 takes a "
                                             "free one)"));
}

}  // namespace switchyard
