// The gRPC server that clients connect to: services behind credentials and limits, as ServerOptions ask for them.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <vector>

#include "base/status.h"
#include "server/api/calls/access_control.h"
#include "server/config/options.h"

namespace switchyard {

// Listens on options.host and options.port, which `bound_port` tells; with health and reflection beside `services`.
// Those and `access` outlive the server. Errors name the flag: a port in use, certificates that do not fit.
absl::StatusOr<std::unique_ptr<grpc::Server>> StartGrpcServer(const ServerOptions& options, const AccessControl& access,
                                                              const std::vector<grpc::Service*>& services,
                                                              int* bound_port);

}  // namespace switchyard
