// Reads ModelInferRequest and writes ModelInferResponse without copying tensors: what is small goes through protobuf,
// tensor bytes stay in the slices that gRPC received or are sent as slices.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "rpc/slice_stream.h"

namespace switchyard {

// One input's InferTensorContents. Elements of the two types that rows have there, as they lie; of the other types only
// that some came.
struct TypedContents {
  bool is_set = false;
  Chunks fp32, fp64;
  int other_field = 0;  // of InferTensorContents; 0 for none
};

struct DecodedInfer {
  inference::ModelInferRequest head;  // without raw_input_contents and without the inputs' contents
  std::vector<TypedContents> typed;   // one for each of head's inputs
  std::vector<Chunks> raw;            // raw_input_contents
  std::shared_ptr<const void> owner;  // of the bytes that chunks view
};

// InvalidArgument for bytes that are not a ModelInferRequest, and for one with more than 64 KiB, or very many pieces,
// beside its tensors' bytes.
absl::StatusOr<DecodedInfer> DecodeInfer(const grpc::ByteBuffer& buffer);

// `tensors` become the response's raw_output_contents; `head` holds every other field.
grpc::ByteBuffer EncodeInfer(const inference::ModelInferResponse& head, const std::vector<TensorSlices>& tensors);
// The same as one message of ModelStreamInfer, and an error as such.
grpc::ByteBuffer EncodeStreamInfer(const inference::ModelInferResponse& head, const std::vector<TensorSlices>& tensors);
grpc::ByteBuffer EncodeStreamError(const inference::ModelInferResponse& head, const absl::Status& status);

}  // namespace switchyard
