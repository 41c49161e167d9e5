#include "server/worker_port.h"

#include <chrono>

#include "rpc/listen.h"
#include "rpc/port_credentials.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<WorkerPort>> WorkerPort::Listen(const std::string& host, int port, const TlsFiles& tls,
                                                               Group* group) {
  std::unique_ptr<WorkerPort> worker_port(new WorkerPort(group));
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);  // workers are authenticated and answer with steps of any size
  builder.SetMaxSendMessageSize(-1);
  builder.RegisterService(&worker_port->service_);
  std::unique_ptr<TlsReloader> certificates;
  if (tls.cert.given()) {
    SY_ASSIGN_OR_RETURN(certificates, TlsReloader::Open(tls));
  }
  SY_ASSIGN_OR_RETURN(worker_port->server_, StartServer(builder, MakePortCredentials(std::move(certificates), nullptr),
                                                        host, port, "--worker_port", &worker_port->port_));
  return worker_port;
}

WorkerPort::~WorkerPort() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

}  // namespace switchyard
