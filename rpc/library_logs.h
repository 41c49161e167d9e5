// The log lines of gRPC and Protobuf, in our log.
#pragma once

namespace switchyard {

// From now on gRPC's lines come in our log instead of on stderr, from each place of its code once a second at most,
// because strangers at a port cause many of them (a TLS handshake that fails, bytes that are not HTTP/2). Lines that
// GRPC_VERBOSITY asks for are not limited. Protobuf's lines are left out: the sender of a malformed message is told
// what is wrong with it. Call after SetUpLogging and before gRPC is used.
void TakeOverLibraryLogs();

}  // namespace switchyard
