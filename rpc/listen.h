// A gRPC server on one port, which it keeps whatever happens to it: see rpc/acceptor.h.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "absl/time/time.h"
#include "base/status.h"
#include "rpc/acceptor.h"

namespace switchyard {

class PortServer {
 public:
  // Builds and starts a server that serves on `options`' port. A port that another process listens on is refused, not
  // shared, with an error that names the flag.
  static absl::StatusOr<std::unique_ptr<PortServer>> Start(grpc::ServerBuilder& builder,
                                                           const std::shared_ptr<grpc::ServerCredentials>& credentials,
                                                           const PortOptions& options);
  // Shuts down at once.
  ~PortServer() { Shutdown(absl::ZeroDuration()); }

  grpc::Server& grpc() { return *server_; }
  int port() const { return acceptor_->port(); }
  // Whether a new connection would be accepted now. Thread-safe.
  bool accepting() { return acceptor_->accepting(); }
  // Connections that are open stay.
  void StopAccepting() { acceptor_->Stop(); }
  // Stops accepting, too, and ends the calls that are still there after `grace`.
  void Shutdown(absl::Duration grace);

 private:
  using Connections = grpc::experimental::ExternalConnectionAcceptor;

  PortServer(std::unique_ptr<Acceptor> acceptor, std::unique_ptr<Connections> connections,
             std::unique_ptr<grpc::Server> server);
  void HandOn(UniqueFd connection);

  const std::unique_ptr<Connections> connections_;
  const std::unique_ptr<grpc::Server> server_;
  const std::unique_ptr<Acceptor> acceptor_;  // ends first, because its thread uses the others
};

}  // namespace switchyard
