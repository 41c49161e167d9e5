// Ends the connections of a gRPC server so that every call that was not answered fails with UNAVAILABLE.
//
// grpc::Server::Shutdown alone ends calls that arrive meanwhile, and streams that are left, with CANCELLED, which
// callers take for a wish of their own and do not try elsewhere.
#pragma once

namespace switchyard {

// Sends the end of the connections of `port` behind all that was sent before. Clients read that, and then fail the
// calls that are left with UNAVAILABLE. Call it when nothing is accepted any more (PortServer::StopAccepting) and all
// answers have been sent, and grpc::Server::Shutdown after it. Does nothing where /proc is missing. TCP only.
void EndConnections(int port);

}  // namespace switchyard
