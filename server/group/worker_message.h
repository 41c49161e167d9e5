// Reading what a worker says on its stream.
//
// A step's result is read by hand, so that its output rows, most of its bytes, are not copied: they stay where gRPC
// received them. Everything else is protobuf's.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <vector>

#include "base/status.h"
#include "proto/worker.pb.h"
#include "server/links/link.h"

namespace switchyard {

struct ReceivedWorkerMessage {
  // Without the rows of a step's result.
  worker::WorkerMessage message;
  // Those rows: views of `slices`.
  RowChunks rows;
  std::shared_ptr<const std::vector<grpc::Slice>> slices;
};

// InvalidArgument for bytes that are no WorkerMessage.
absl::StatusOr<ReceivedWorkerMessage> DecodeWorkerMessage(const grpc::ByteBuffer& buffer);

}  // namespace switchyard
