#include "server/api/calls/memory_owner.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace switchyard {

std::string HostOf(const std::string& peer) {
  // gRPC writes the brackets of IPv6 addresses literally or percent-encoded.
  for (const char* here : {"unix:", "unix-abstract:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"}) {
    if (absl::StartsWith(peer, here)) return "this host";
  }
  return peer.substr(0, peer.rfind(':'));
}

std::string OwnerOf(const grpc::ServerContextBase& context) {
  const auto authentication = context.auth_context();
  if (authentication == nullptr || !authentication->IsPeerAuthenticated()) return HostOf(context.peer());
  std::string identity = "identity";
  for (const grpc::string_ref& name : authentication->GetPeerIdentity()) {
    absl::StrAppend(&identity, " ", absl::string_view(name.data(), name.size()));
  }
  return identity;
}

}  // namespace switchyard
