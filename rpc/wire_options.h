// gRPC's settings on the wire. They are gRPC's own, on every server and channel of ours, unless the environment has
//
//   SWITCHYARD_GRPC_ARGS=grpc.http2.max_frame_size=1048576,grpc.http2.lookahead_bytes=4194304
//
// which is how others are tried on the whole path, without a build (docs/wire.md): names as in grpc_types.h, numbers
// only. What is malformed is told on stderr, and left out.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <vector>

#include "base/status.h"

namespace switchyard {

struct WireArg {
  std::string name;
  int value = 0;
};

// Of NAME=NUMBER,NAME=NUMBER,…; empty for an empty text. InvalidArgument names the part that is something else.
absl::StatusOr<std::vector<WireArg>> ParseWireArgs(const std::string& text);

void TuneServer(grpc::ServerBuilder& builder);
void TuneChannel(grpc::ChannelArguments* args);

}  // namespace switchyard
