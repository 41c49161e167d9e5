// Who may join as a worker: decided from a call's metadata and address alone, before any of its messages is read.
//
// A worker shows the front's token or, on a port with mutual TLS, a certificate, or both when the front has both. A
// port without either is on loopback, and takes only processes of the front's own user there, which could do anything
// to the front anyway.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "server/observe/metrics.h"

namespace switchyard {

class WorkerAccess {
 public:
  struct Refusal {
    WorkerRefusal reason;
    absl::Status why;  // for the worker and for the log
  };

  // An empty `token` asks for none. `has_certificates`: connections are made with mutual TLS only.
  WorkerAccess(std::string token, bool has_certificates)
      : token_(std::move(token)), has_certificates_(has_certificates) {}

  // The port that workers connect to. Without it, nobody is taken for a process of this host.
  void SetPort(int port) { port_.store(port); }

  // Nullopt lets the caller in. `authorization` is the call's metadata of that name, empty for none; `peer` as
  // grpc::ServerContext::peer() has it.
  std::optional<Refusal> Check(absl::string_view authorization, const std::string& peer) const;

 private:
  const std::string token_;
  const bool has_certificates_;
  std::atomic<int> port_{0};
};

}  // namespace switchyard
