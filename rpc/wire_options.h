// gRPC's transport settings. All our servers and channels use gRPC's defaults, unless the environment has
//
//   SWITCHYARD_GRPC_ARGS=grpc.http2.max_frame_size=1048576,grpc.http2.lookahead_bytes=4194304
//
// With it, other settings can be tried on the whole path without a build (docs/wire.md). Names are those of
// grpc_types.h; values are integers only. If any part is malformed, the whole text is ignored and stderr says so.
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

// Parses NAME=NUMBER,NAME=NUMBER,…; an empty text gives none. InvalidArgument names the malformed part.
absl::StatusOr<std::vector<WireArg>> ParseWireArgs(const std::string& text);

void TuneServer(grpc::ServerBuilder& builder);
void TuneChannel(grpc::ChannelArguments* args);

}  // namespace switchyard
