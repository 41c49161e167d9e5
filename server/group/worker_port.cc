#include "server/group/worker_port.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <limits>

#include "rpc/listen.h"
#include "rpc/port_credentials.h"
#include "server/group/group.h"
#include "server/group/worker_message.h"
#include "server/group/worker_service.h"

namespace switchyard {
namespace {

// Until a connection must have become an HTTP/2 one. Workers are near, and strangers need no patience.
constexpr int kHandshakeTimeoutMs = 5000;

// Beside those of the workers and of the workers that replace them: for strangers, whose connections end soon.
constexpr int kSpareConnections = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPort>> WorkerPort::Listen(const std::string& host, int port, const TlsFiles& tls,
                                                               size_t max_row_bytes, Group* group) {
  std::unique_ptr<WorkerPort> worker_port(new WorkerPort(group));
  grpc::ServerBuilder builder;
  const size_t max_bytes = max_row_bytes + kMaxFieldBytes;
  builder.SetMaxReceiveMessageSize(static_cast<int>(std::min<size_t>(max_bytes, std::numeric_limits<int>::max())));
  builder.SetMaxSendMessageSize(-1);
  builder.RegisterService(worker_port->service_.get());
  std::unique_ptr<TlsReloader> certificates;
  if (tls.cert.given()) {
    SY_ASSIGN_OR_RETURN(certificates, TlsReloader::Open(tls));
  }
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  const int num_ranks = static_cast<int>(group->info().ranks.size());
  SY_ASSIGN_OR_RETURN(worker_port->server_,
                      PortServer::Start(builder, MakePortCredentials(std::move(certificates), nullptr),
                                        {.host = host,
                                         .port = port,
                                         .flag = "--worker_port",
                                         .kind = PortKind::kWorkers,
                                         .max_connections = 2 * num_ranks + kSpareConnections}));
  return worker_port;
}

WorkerPort::WorkerPort(Group* group) : service_(MakeWorkerService(group)) {}

WorkerPort::~WorkerPort() = default;

int WorkerPort::port() const { return server_->port(); }

}  // namespace switchyard
