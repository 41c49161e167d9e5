// The gRPC server that clients connect to. Its services are behind the credentials and limits that ServerOptions ask
// for.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <vector>

#include "base/status.h"
#include "rpc/listen.h"
#include "server/api/calls/access_control.h"
#include "server/config/options.h"

namespace switchyard {

// Listens on options.host and options.port. Serves `services`, health and reflection. `services`
// and `access` must outlive the server. Errors name the flag, for instance for a port in use or certificates that do
// not fit.
absl::StatusOr<std::unique_ptr<PortServer>> StartGrpcServer(const ServerOptions& options, const AccessControl& access,
                                                            const std::vector<grpc::Service*>& services);

}  // namespace switchyard
