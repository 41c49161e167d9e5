// Ends the connections of a gRPC server so that every call that was not answered fails with UNAVAILABLE.
//
// grpc::Server::Shutdown alone ends calls that arrive meanwhile, and streams that are left, with CANCELLED, which
// callers take for a wish of their own and do not try elsewhere.
#pragma once

namespace switchyard {

// Stops listening on `port`, and sends the end of its connections behind all that was sent before. Clients read that,
// and then fail the calls that are left with UNAVAILABLE. Call it when all answers have been sent, and
// grpc::Server::Shutdown after it. Does nothing where /proc is missing. TCP only.
void EndConnections(int port);

}  // namespace switchyard
