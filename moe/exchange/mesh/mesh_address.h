// How the other ranks of a group reach one rank: the socket that it listens on, and the nonce that proves to it that
// whoever connects was told so by the code that forms the group.
//
// Every communicator has a nonce of its own, so a connection of another epoch is as strange as a stranger's. Addresses
// travel over the front's worker port only. As bytes, see blob.h:
//   "SYMA" | rank | size | nonce (16 bytes) | host identity | socket address
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace switchyard {

using MeshNonce = std::array<uint8_t, 16>;

struct MeshAddress {
  int rank = 0;
  int size = 1;
  MeshNonce nonce{};
  // HostIdentity() of the rank's process. Empty for a rank that may be on any host.
  std::string host_identity;
  // A sockaddr_un, sockaddr_in or sockaddr_in6, whole; empty for the only rank of a group.
  std::string socket_address;
};

std::string EncodeMeshAddress(const MeshAddress& address);

// InvalidArgument for anything but a well-formed blob of rank `rank` in a group of `size`, whose socket is of `family`.
absl::StatusOr<MeshAddress> ParseMeshAddress(std::string_view blob, int rank, int size, sa_family_t family);

// Random bytes that nobody can guess.
absl::StatusOr<MeshNonce> NewMeshNonce();

// Equal for two processes exactly if they can pass each other descriptors over a Unix socket that tells them that both
// are of one user: the running kernel, the network namespace, the user namespace and the user. Empty where the system
// does not tell. Virtual machines that were cloned while they ran have equal identities.
std::string HostIdentity();

}  // namespace switchyard
