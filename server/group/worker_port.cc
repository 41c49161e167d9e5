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

// A worker has one stream. Strangers need no more, but a stream that has just ended may still count.
constexpr int kMaxStreams = 4;

// Room for the connections of strangers in the port's share of memory.
constexpr size_t kSpareBytes = 256 << 20;

// All that gRPC may hold for this port at a time. It ends streams when it needs more, so workers have twice of the
// message that each may send, and those that they replace have it, too.
size_t QuotaBytes(size_t max_message_bytes, int num_ranks) {
  return 4 * static_cast<size_t>(num_ranks) * max_message_bytes + kSpareBytes;
}

// Bounds the memory that gRPC keeps for one port's connections, before and after it knows whose they are.
void LimitMemory(grpc::ServerBuilder& builder, size_t max_row_bytes, int num_ranks) {
  const size_t max_bytes = std::min<size_t>(max_row_bytes + kMaxFieldBytes, std::numeric_limits<int>::max());
  builder.SetMaxReceiveMessageSize(static_cast<int>(max_bytes));
  builder.SetMaxSendMessageSize(-1);
  builder.SetResourceQuota(grpc::ResourceQuota("workers").Resize(QuotaBytes(max_bytes, num_ranks)));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPort>> WorkerPort::Listen(const WorkerPortOptions& options, Group* group) {
  std::unique_ptr<WorkerPort> worker_port(new WorkerPort(options, group));
  const int num_ranks = static_cast<int>(group->info().ranks.size());
  grpc::ServerBuilder builder;
  LimitMemory(builder, options.max_row_bytes, num_ranks);
  builder.RegisterService(worker_port->service_.get());
  std::unique_ptr<TlsReloader> certificates;
  if (options.tls.cert.given()) {
    SY_ASSIGN_OR_RETURN(certificates, TlsReloader::Open(options.tls));
  }
  SY_ASSIGN_OR_RETURN(worker_port->server_,
                      PortServer::Start(builder, MakePortCredentials(std::move(certificates), nullptr),
                                        {.host = options.host,
                                         .port = options.port,
                                         .flag = "--worker_port",
                                         .kind = PortKind::kWorkers,
                                         .max_connections = 2 * num_ranks + kSpareConnections}));
  worker_port->access_.SetPort(worker_port->port());
  return worker_port;
}

WorkerPort::WorkerPort(const WorkerPortOptions& options, Group* group)
    : access_(options.token, options.tls.ca.given()),
      service_(MakeWorkerService(&access_, options.hello_timeout, group)) {
  access_.SetPort(options.port);  // 0 until a free one is taken, which nobody knows before
}

WorkerPort::~WorkerPort() = default;

int WorkerPort::port() const { return server_->port(); }

}  // namespace switchyard
