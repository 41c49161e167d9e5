// Calls that are opened, sent a request or a few, and cancelled: at once, while they wait, or while they run.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <map>
#include <string>

#include "moe/base/status.h"

namespace switchyard {

inline constexpr char kForwardMethod[] = "/switchyard.v1.Switchyard/Forward";
inline constexpr char kInferMethod[] = "/inference.GRPCInferenceService/ModelInfer";
inline constexpr char kInferStreamMethod[] = "/inference.GRPCInferenceService/ModelStreamInfer";

struct CancelStorm {
  std::string target;
  std::string method = kForwardMethod;
  bool is_stream = false;
  grpc::ByteBuffer message;
  int64_t num_calls = 1000;
  double rate_per_s = 0;  // 0 for as fast as it goes
  int max_open = 64;
  int num_channels = 4;
  uint64_t seed = 1;
};

// How the calls ended, by code. Returns when all have.
std::map<absl::StatusCode, int64_t> RunCancelStorm(const CancelStorm& storm);

// Requests for `num_rows` rows of zeros, serialized.
grpc::ByteBuffer ForwardMessage(const std::string& model, const std::string& layer, int64_t num_rows,
                                int64_t hidden_dim);
grpc::ByteBuffer InferMessage(const std::string& model_and_layer, int64_t num_rows, int64_t hidden_dim);

}  // namespace switchyard
