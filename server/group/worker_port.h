// The gRPC server that workers join.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/status.h"
#include "rpc/tls_files.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace switchyard {

class Group;
class PortServer;

// Listens from construction to destruction.
class WorkerPort {
 public:
  // `tls` is all three files, or none for no TLS. `max_row_bytes` is the size of the largest step's output on one rank:
  // a peer that sends more, before its token was even looked at, is no worker.
  static absl::StatusOr<std::unique_ptr<WorkerPort>> Listen(const std::string& host, int port, const TlsFiles& tls,
                                                            size_t max_row_bytes, Group* group);
  ~WorkerPort();

  int port() const;

 private:
  explicit WorkerPort(Group* group);

  std::unique_ptr<grpc::Service> service_;  // outlives the server
  std::unique_ptr<PortServer> server_;
};

}  // namespace switchyard
