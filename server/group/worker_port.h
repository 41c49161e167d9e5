// The gRPC server that workers join.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "rpc/tls_files.h"
#include "server/group/worker_service.h"

namespace switchyard {

// Listens from construction to destruction.
class WorkerPort {
 public:
  // `tls` is all three files, or none for no TLS. `max_row_bytes` are those of the largest step's output on one rank:
  // whoever sends more, before its token was even looked at, is no worker.
  static absl::StatusOr<std::unique_ptr<WorkerPort>> Listen(const std::string& host, int port, const TlsFiles& tls,
                                                            size_t max_row_bytes, Group* group);
  ~WorkerPort();

  int port() const { return port_; }

 private:
  explicit WorkerPort(Group* group) : service_(group) {}

  WorkerService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace switchyard
