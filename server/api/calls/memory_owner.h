// Identifies callers, for state that the server keeps for a caller between its calls.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

namespace switchyard {

// The identity that the caller has proven (its certificate's names), or else the host that it calls from. All processes
// of this host are one caller, whatever address they use.
std::string OwnerOf(const grpc::ServerContextBase& context);

// The host, from gRPC's text for the peer's address, such as "ipv4:10.0.0.7:4711".
std::string HostOf(const std::string& peer);

}  // namespace switchyard
