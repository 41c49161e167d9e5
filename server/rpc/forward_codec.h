// Reads ForwardRequest and writes ForwardResponse without copying rows: the few small fields are decoded by protobuf's
// own coded streams, tensor bytes stay in the slices that gRPC received or are sent as slices.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>
#include <string>

#include "moe/base/status.h"
#include "proto/switchyard.pb.h"
#include "server/request.h"
#include "server/rpc/slice_stream.h"

namespace switchyard {

// A decoded request. Its rows are views over slices that they keep alive.
struct DecodedForward {
  std::string model;
  std::string layer;
  int dtype = 0;  // v1::DataType, unchecked
  int64_t num_rows = 0;
  bool return_routing = false;
  bool return_balance_loss = false;
  int64_t gate_idx = 0;  // unchecked, as all of these
  int64_t top_k = 0;
  std::optional<double> capacity_factor;
  ChunkedRows rows;
};

// InvalidArgument for bytes that are not a ForwardRequest. Unknown fields are skipped, as protobuf does.
absl::StatusOr<DecodedForward> DecodeForward(const grpc::ByteBuffer& buffer);

// `rows` becomes the response's rows; `rest` holds every other field and no rows.
grpc::ByteBuffer EncodeForward(const v1::ForwardResponse& rest, const TensorSlices& rows);

}  // namespace switchyard
