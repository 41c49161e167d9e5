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

// A message may have so many bytes beside the rows of a step's result: the digests of half a million experts, the
// largest part of any message, have room.
inline constexpr size_t kMaxFieldBytes = size_t{4} << 20;

struct ReceivedWorkerMessage {
  // Without the rows of a step's result.
  worker::WorkerMessage message;
  // Those rows: views of `slices`.
  RowChunks rows;
  std::shared_ptr<const std::vector<grpc::Slice>> slices;
};

// InvalidArgument for bytes that are no WorkerMessage, or a larger one.
absl::StatusOr<ReceivedWorkerMessage> DecodeWorkerMessage(const grpc::ByteBuffer& buffer);

}  // namespace switchyard
