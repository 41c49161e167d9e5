// Reads ForwardRequest and writes ForwardResponse, alone and as messages of a stream, without copying rows. Protobuf's
// own coded streams decode the few small fields. Tensor bytes stay in the slices that gRPC received, or are sent as
// slices.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "proto/switchyard.pb.h"
#include "rpc/slice_stream.h"
#include "server/requests/request.h"

namespace switchyard {

// A decoded request. Its rows are views of slices; they keep the slices alive.
struct DecodedForward {
  std::string model;
  std::string layer;
  int dtype = 0;  // v1::DataType, unchecked
  int64_t num_rows = 0;
  bool return_routing = false;
  bool return_balance_loss = false;
  int64_t gate_idx = 0;  // unchecked, like all numbers here
  int64_t top_k = 0;
  std::optional<double> capacity_factor;
  int64_t timeout_us = 0;
  std::optional<bool> return_stats;
  int64_t priority = 0;
  int64_t queue_timeout_us = 0;
  ChunkedRows rows;
};

// A decoded ForwardStreamRequest.
struct DecodedStreamMessage {
  uint64_t id = 0;  // 0 when it could not be read
  bool is_cancel = false;
  absl::StatusOr<DecodedForward> forward;  // unless is_cancel
};

// InvalidArgument for bytes that are not a ForwardRequest. Unknown fields are skipped, as protobuf does.
absl::StatusOr<DecodedForward> DecodeForward(const grpc::ByteBuffer& buffer);

// Bytes that are not a ForwardStreamRequest, or one without an action, give an error in `forward`.
DecodedStreamMessage DecodeStreamMessage(const grpc::ByteBuffer& buffer);

// Encodes a response with `rows` as its rows; `rest` holds every other field and no rows.
grpc::ByteBuffer EncodeForward(const v1::ForwardResponse& rest, const TensorSlices& rows);
// The first encodes the same in a ForwardStreamResponse to the request `id`, the second an error.
grpc::ByteBuffer EncodeStreamForward(uint64_t id, const v1::ForwardResponse& rest, const TensorSlices& rows);
grpc::ByteBuffer EncodeStreamError(uint64_t id, const absl::Status& status, int64_t retry_after_ms);

}  // namespace switchyard
