#include "server/group/worker_access.h"

#include "rpc/peer_user.h"
#include "rpc/token_list.h"

namespace switchyard {

std::optional<WorkerAccess::Refusal> WorkerAccess::Check(absl::string_view authorization,
                                                         const std::string& peer) const {
  if (!token_.empty()) {
    if (SameToken(BearerToken(authorization), token_)) return std::nullopt;
    return Refusal{WorkerRefusal::kToken,
                   absl::UnauthenticatedError("worker refused: its token is not this front's; --worker_token_file must "
                                              "name a file with the same token on both sides")};
  }
  if (has_certificates_) return std::nullopt;
  const absl::Status is_own = CheckPeerIsOwnUser(peer, port_.load());
  if (is_own.ok()) return std::nullopt;
  return Refusal{WorkerRefusal::kUser, absl::UnauthenticatedError(absl::StrCat(
                                           "worker refused: without a token only processes of the front's own user may "
                                           "join, and ",
                                           is_own.message(), "; give both the same --worker_token_file"))};
}

}  // namespace switchyard
