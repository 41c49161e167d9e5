// The user of this host at the other end of a TCP connection over loopback.
//
// TCP has no SO_PEERCRED, but the kernel lists every socket of this network namespace with its user, in /proc/net/tcp
// and tcp6. Loopback does not leave the namespace, so the peer's socket is in the list, too.
//
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "base/status.h"

namespace switchyard {

// The user of the socket at `peer`, which is as grpc::ServerContext::peer() has it ("ipv4:127.0.0.1:40000"), of a
// connection to `port` of this host. Reads the kernel's list, which takes time in proportion to the sockets there are.
// FailedPrecondition, with the reason, when that cannot be told: the peer is not on loopback, has closed its socket, or
// /proc cannot be read.
absl::StatusOr<uid_t> UserOfPeer(const std::string& peer, int port);

// The same from the texts of both lists.
absl::StatusOr<uid_t> UserOfPeerIn(std::string_view tcp, std::string_view tcp6, const std::string& peer, int port);

// OK when the peer's user is the one that this process runs as. The system's user for nobody is never taken for the
// same user, because several services may share it, and users of other user namespaces are shown as it.
absl::Status CheckPeerIsOwnUser(const std::string& peer, int port);

}  // namespace switchyard
