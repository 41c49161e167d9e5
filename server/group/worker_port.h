// The gRPC server that workers join.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "base/status.h"
#include "rpc/tls_files.h"
#include "server/group/worker_access.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace switchyard {

class Group;
class PortServer;

struct WorkerPortOptions {
  std::string host;
  int port = 0;
  TlsFiles tls;       // all three files, or none for no TLS
  std::string token;  // empty asks for none: see worker_access.h
  // The size of the largest step's output on one rank. A peer that sends more is no worker.
  size_t max_row_bytes = 0;
  // Until the first message of a worker that was let in.
  std::chrono::milliseconds hello_timeout{5000};
};

// Listens from construction to destruction.
class WorkerPort {
 public:
  static absl::StatusOr<std::unique_ptr<WorkerPort>> Listen(const WorkerPortOptions& options, Group* group);
  ~WorkerPort();

  int port() const;

 private:
  WorkerPort(const WorkerPortOptions& options, Group* group);

  WorkerAccess access_;
  std::unique_ptr<grpc::Service> service_;  // outlives the server
  std::unique_ptr<PortServer> server_;
};

}  // namespace switchyard
