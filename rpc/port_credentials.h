// The credentials of a server's port: TLS or not, and a check of every call before any other work.
//
// gRPC's own C++ credentials cannot reload a certificate and its key without a moment in which the two do not fit, nor
// check calls on a port without TLS. gRPC's core can do both, so these credentials are made from the core.
#pragma once

#include <grpc/grpc_security.h>
#include <grpcpp/security/server_credentials.h>

#include <functional>
#include <memory>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "rpc/tls.h"

namespace switchyard {

// Called from any thread for every call, also of methods that do not exist, with the method's path
// ("/package.Service/Method") and the metadata `authorization`, which is empty when there is none. Must not block. An
// error becomes the call's status.
using CallCheckFn = std::function<absl::Status(absl::string_view path, absl::string_view authorization)>;

// `tls` null: no TLS. `check` null: every call passes.
std::shared_ptr<grpc::ServerCredentials> MakePortCredentials(std::unique_ptr<TlsReloader> tls, CallCheckFn check);

}  // namespace switchyard
