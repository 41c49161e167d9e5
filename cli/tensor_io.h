// Reads matrices from .safetensors files and writes them to such files. The command line names them as FILE:KEY.
//
// No state apart from the file; thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "base/tensor/buffer.h"
#include "client/client.h"

namespace switchyard {

struct TensorRef {
  std::string path;
  std::string key;
};

// Splits FILE:KEY at the last colon. InvalidArgument when either part is missing.
absl::StatusOr<TensorRef> ParseTensorRef(std::string_view text);

// Reads a floating-point tensor [..., D] as the matrix [rows, D] in its stored type. Errors name file and key.
absl::StatusOr<HostMatrix> LoadMatrix(const TensorRef& ref);

// Writes the result's rows under `ref.key`. When the result has a routing, also writes KEY.expert_ids (I32) and
// KEY.expert_weights (F32), both [rows, top_k]. Replaces the file.
absl::Status SaveResult(const TensorRef& ref, const ForwardResult& result);

// The same values in another type.
HostMatrix ConvertTo(DType dtype, ConstMatrixView matrix);

}  // namespace switchyard
