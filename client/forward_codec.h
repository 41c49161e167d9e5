// Encodes and decodes the messages of Forward and ForwardStream. Generated code would copy the rows twice on each side
// (into the message's string, then into gRPC's slices). These functions write the same bytes around rows that stay
// where they are, and read the answer's rows straight into the matrix that the caller gets.
//
// Pure functions; thread-safe.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include "client/client.h"

namespace switchyard {

// The metadata key of a request's id.
inline constexpr char kRequestIdKey[] = "x-request-id";

v1::DataType ToProto(DType dtype);
// InvalidArgument for a value that names no element type.
absl::StatusOr<DType> FromProto(v1::DataType dtype);

// Encodes a v1.ForwardRequest. The buffer shares args.rows_owner, or holds its own copy of the rows when there is none.
// ResourceExhausted when the message would exceed protobuf's limit of 2 GiB.
absl::StatusOr<grpc::ByteBuffer> EncodeForwardRequest(const ForwardArgs& args);

// Reads the v1.ForwardResponse to a request whose rows have the shape and type of `request_rows`. Internal when the
// bytes are no such message, or have another shape or type.
absl::StatusOr<ForwardResult> DecodeForwardResponse(grpc::ByteBuffer* response, ConstMatrixView request_rows);

// The first encodes a v1.ForwardStreamRequest with a request, like EncodeForwardRequest; the second one that cancels
// the requests with `id`.
absl::StatusOr<grpc::ByteBuffer> EncodeStreamRequest(uint64_t id, const ForwardArgs& args, int64_t timeout_us);
grpc::ByteBuffer EncodeStreamCancel(uint64_t id);

// The content of a v1.ForwardStreamResponse, without its ForwardResponse.
struct StreamAnswer {
  uint64_t id = 0;
  absl::Status error;  // of the request; has the payload kRetryAfterUrl when the server says when to try again
  // Where the ForwardResponse lies in the message, when there is no error:
  int offset = 0;
  int num_bytes = 0;
};
// Internal when the bytes are no such message.
absl::StatusOr<StreamAnswer> ReadStreamAnswer(grpc::ByteBuffer* message);
// Reads the ForwardResponse in the message, like DecodeForwardResponse.
absl::StatusOr<ForwardResult> DecodeStreamResponse(grpc::ByteBuffer* message, const StreamAnswer& answer,
                                                   ConstMatrixView request_rows);

}  // namespace switchyard
