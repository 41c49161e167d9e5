#include "rpc/listen.h"

#include <utility>

#include "rpc/deadline.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<PortServer>> PortServer::Start(
    grpc::ServerBuilder& builder, const std::shared_ptr<grpc::ServerCredentials>& credentials,
    const PortOptions& options) {
  SY_ASSIGN_OR_RETURN(std::unique_ptr<Acceptor> acceptor, Acceptor::Listen(options));
  auto connections = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::InternalError(absl::StrCat(options.flag, ": gRPC cannot start its server"));
  return std::unique_ptr<PortServer>(new PortServer(std::move(acceptor), std::move(connections), std::move(server)));
}

PortServer::PortServer(std::unique_ptr<Acceptor> acceptor, std::unique_ptr<Connections> connections,
                       std::unique_ptr<grpc::Server> server)
    : connections_(std::move(connections)), server_(std::move(server)), acceptor_(std::move(acceptor)) {
  acceptor_->Start([this](UniqueFd connection) { HandOn(std::move(connection)); });
}

void PortServer::HandOn(UniqueFd connection) {
  Connections::NewConnectionParameters parameters;
  parameters.fd = connection.release();  // gRPC's from here on
  connections_->HandleNewConnection(&parameters);
}

void PortServer::Shutdown(absl::Duration grace) {
  StopAccepting();
  server_->Shutdown(DeadlineAfter(grace));
}

}  // namespace switchyard
