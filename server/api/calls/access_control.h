// Decides who may make which calls on the clients' port.
//
// - With --auth_token_file every call needs one of its tokens, reflection and unknown methods included. Only
//   grpc.health.v1 is open, for probes.
// - Calls that change the server for everybody (load and unload, log and trace settings, shared memory) need one of the
//   tokens of --admin_token_file. Without that flag, a server bound to loopback allows them to every caller; a server
//   bound elsewhere refuses them, unless --allow_remote_admin was given.
//
// An admin's token also passes where any token is asked for. Tokens come as `authorization: Bearer TOKEN`. Thread-safe.
#pragma once

#include <grpcpp/server_context.h>

#include <memory>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "rpc/port_credentials.h"
#include "rpc/token_list.h"
#include "server/config/options.h"

namespace switchyard {

class AccessControl {
 public:
  // Reads the token files. `options` are valid.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Open(const ServerOptions& options);

  // The check for the port's credentials. UNAUTHENTICATED or PERMISSION_DENIED says what is missing. Null when every
  // caller may make every call. It refers to this object.
  CallCheckFn call_check() const;

  // Some calls change the server only when some of their fields are set; their handlers then call this. Calls that
  // always change the server are known by name, and a refused one does not reach its handler. `what` names the call in
  // the PERMISSION_DENIED.
  absl::Status CheckAdmin(const grpc::ServerContextBase& context, absl::string_view what) const;

 private:
  AccessControl(bool is_admin_refused, std::unique_ptr<TokenList> auth, std::unique_ptr<TokenList> admin)
      : is_admin_refused_(is_admin_refused), auth_(std::move(auth)), admin_(std::move(admin)) {}

  absl::Status CheckCall(absl::string_view path, absl::string_view authorization) const;
  absl::Status CheckToken(absl::string_view token) const;
  absl::Status CheckAdminToken(absl::string_view what, absl::string_view token) const;

  const bool is_admin_refused_;  // applies when there are no admin tokens
  const std::unique_ptr<TokenList> auth_;
  const std::unique_ptr<TokenList> admin_;
};

}  // namespace switchyard
