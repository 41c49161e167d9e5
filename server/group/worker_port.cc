#include "server/group/worker_port.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <limits>

#include "absl/time/time.h"
#include "rpc/deadline.h"
#include "rpc/listen.h"
#include "rpc/port_credentials.h"
#include "server/group/worker_service.h"

namespace switchyard {
namespace {

// Room for the other fields of a message beside its rows.
constexpr size_t kEnvelopeBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPort>> WorkerPort::Listen(const std::string& host, int port, const TlsFiles& tls,
                                                               size_t max_row_bytes, Group* group) {
  std::unique_ptr<WorkerPort> worker_port(new WorkerPort(group));
  grpc::ServerBuilder builder;
  const size_t max_bytes = max_row_bytes + kEnvelopeBytes;
  builder.SetMaxReceiveMessageSize(static_cast<int>(std::min<size_t>(max_bytes, std::numeric_limits<int>::max())));
  builder.SetMaxSendMessageSize(-1);
  builder.RegisterService(worker_port->service_.get());
  std::unique_ptr<TlsReloader> certificates;
  if (tls.cert.given()) {
    SY_ASSIGN_OR_RETURN(certificates, TlsReloader::Open(tls));
  }
  SY_ASSIGN_OR_RETURN(worker_port->server_, StartServer(builder, MakePortCredentials(std::move(certificates), nullptr),
                                                        host, port, "--worker_port", &worker_port->port_));
  return worker_port;
}

WorkerPort::WorkerPort(Group* group) : service_(MakeWorkerService(group)) {}

WorkerPort::~WorkerPort() {
  if (server_ != nullptr) server_->Shutdown(DeadlineAfter(absl::ZeroDuration()));
}

}  // namespace switchyard
