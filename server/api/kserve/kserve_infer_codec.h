// Reads ModelInferRequest and writes ModelInferResponse without copying tensors. Small fields go through protobuf.
// Tensor bytes stay in the slices that gRPC received, or are sent as slices.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "rpc/slice_stream.h"

namespace switchyard {

// The InferTensorContents of one input. Rows use two of its types; views of their elements are kept. For the other
// types only the fact that some came is kept.
struct TypedContents {
  bool is_set = false;
  Chunks fp32, fp64;
  int other_field = 0;  // a field of InferTensorContents; 0 for none
};

struct DecodedInfer {
  inference::ModelInferRequest head;  // without raw_input_contents and without the inputs' contents
  std::vector<TypedContents> typed;   // one for each of head's inputs
  std::vector<Chunks> raw;            // one for each entry of raw_input_contents
  std::shared_ptr<const void> owner;  // keeps the bytes that chunks view
};

// InvalidArgument for bytes that are not a ModelInferRequest, for a request with more than 64 KiB beside its tensors'
// bytes, and for one with very many pieces.
absl::StatusOr<DecodedInfer> DecodeInfer(const grpc::ByteBuffer& buffer);

// Encodes a response with `tensors` as its raw_output_contents; `head` holds every other field.
grpc::ByteBuffer EncodeInfer(const inference::ModelInferResponse& head, const std::vector<TensorSlices>& tensors);
// The first encodes the same as one message of ModelStreamInfer, the second an error.
grpc::ByteBuffer EncodeStreamInfer(const inference::ModelInferResponse& head, const std::vector<TensorSlices>& tensors);
grpc::ByteBuffer EncodeStreamError(const inference::ModelInferResponse& head, const absl::Status& status);

}  // namespace switchyard
