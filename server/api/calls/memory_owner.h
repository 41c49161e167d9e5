// Who makes a call, for what callers keep at the server between their calls.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

namespace switchyard {

// The identity that the caller has proven (its certificate's names), or else the host that it calls from. Processes of
// this host are one caller, over whatever address they call.
std::string OwnerOf(const grpc::ServerContextBase& context);

// The same from gRPC's text for the peer's address, such as "ipv4:10.0.0.7:4711".
std::string HostOf(const std::string& peer);

}  // namespace switchyard
