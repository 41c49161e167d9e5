// Forward's messages as bytes. Generated code would copy the rows twice on each side (into the message's string, then
// into gRPC's slices); these functions write the same bytes around rows that stay where they are, and read the answer's
// rows straight into the matrix that the caller gets.
//
// Pure functions; thread-safe.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include "client/client.h"

namespace switchyard {

v1::DataType ToProto(DType dtype);
// InvalidArgument for a value that names no element type.
absl::StatusOr<DType> FromProto(v1::DataType dtype);

// A v1.ForwardRequest. The buffer shares args.rows_owner, or holds its own copy of the rows when there is none.
// ResourceExhausted when the message would pass protobuf's limit of 2 GiB.
absl::StatusOr<grpc::ByteBuffer> EncodeForwardRequest(const ForwardArgs& args);

// Reads a v1.ForwardResponse to a request with rows of the shape and type of `request_rows`. Internal when the bytes
// are no such message, or answer with another shape or type.
absl::StatusOr<ForwardResult> DecodeForwardResponse(grpc::ByteBuffer* response, ConstMatrixView request_rows);

}  // namespace switchyard
