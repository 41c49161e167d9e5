// gRPC settings on which the speed of rows on the wire depends, the same for every server and client of ours.
// docs/wire.md says what was measured.
#pragma once

#include <grpcpp/grpcpp.h>

namespace switchyard {

inline void TuneServer(grpc::ServerBuilder& /*builder*/) {}

inline void TuneChannel(grpc::ChannelArguments* /*args*/) {}

}  // namespace switchyard
