#include "server/api/calls/access_control.h"

#include <algorithm>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "rpc/loopback.h"

namespace switchyard {
namespace {

constexpr absl::string_view kHealthPrefix = "/grpc.health.v1.Health/";

// Methods of inference.GRPCInferenceService.
constexpr absl::string_view kAdminMethods[] = {
    "RepositoryModelLoad",      "RepositoryModelUnload",        "SystemSharedMemoryRegister",
    "CudaSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryUnregister",
};

absl::StatusOr<std::unique_ptr<TokenList>> OpenTokens(const FlagFile& file) {
  if (!file.given()) return std::unique_ptr<TokenList>();
  return TokenList::Open(file);
}

absl::string_view AuthorizationOf(const grpc::ServerContextBase& context) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("authorization");
  return it == metadata.end() ? absl::string_view() : absl::string_view(it->second.data(), it->second.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Open(const ServerOptions& options) {
  SY_ASSIGN_OR_RETURN(auto auth, OpenTokens(options.auth_tokens()));
  SY_ASSIGN_OR_RETURN(auto admin, OpenTokens(options.admin_tokens()));
  const bool is_admin_refused = !IsLoopback(options.host) && !options.allow_remote_admin;
  return std::unique_ptr<AccessControl>(new AccessControl(is_admin_refused, std::move(auth), std::move(admin)));
}

CallCheckFn AccessControl::call_check() const {
  if (auth_ == nullptr && admin_ == nullptr && !is_admin_refused_) return nullptr;
  return [this](absl::string_view path, absl::string_view authorization) { return CheckCall(path, authorization); };
}

absl::Status AccessControl::CheckCall(absl::string_view path, absl::string_view authorization) const {
  if (absl::StartsWith(path, kHealthPrefix)) return absl::OkStatus();
  const absl::string_view token = BearerToken(authorization);
  if (auth_ != nullptr) SY_RETURN_IF_ERROR(CheckToken(token));
  const absl::string_view method = path.substr(std::min(path.size(), path.rfind('/') + 1));
  return absl::c_linear_search(kAdminMethods, method) ? CheckAdminToken(method, token) : absl::OkStatus();
}

absl::Status AccessControl::CheckToken(absl::string_view token) const {
  if (token.empty()) {
    return absl::UnauthenticatedError("this server asks for a token: send the metadata 'authorization: Bearer TOKEN'");
  }
  if (auth_->Has(token) || (admin_ != nullptr && admin_->Has(token))) return absl::OkStatus();
  return absl::UnauthenticatedError("the token in the metadata 'authorization' is not one of this server's");
}

absl::Status AccessControl::CheckAdmin(const grpc::ServerContextBase& context, absl::string_view what) const {
  return CheckAdminToken(what, BearerToken(AuthorizationOf(context)));
}

absl::Status AccessControl::CheckAdminToken(absl::string_view what, absl::string_view token) const {
  if (admin_ != nullptr) {
    if (admin_->Has(token)) return absl::OkStatus();
    return absl::PermissionDeniedError(absl::StrCat(
        what, ": is for administrators: expected a token of --admin_token_file in the metadata 'authorization'"));
  }
  if (!is_admin_refused_) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat(what,
                   ": is for administrators, and this server is reachable from other hosts: it has to be started "
                   "with --admin_token_file or --allow_remote_admin"));
}

}  // namespace switchyard
