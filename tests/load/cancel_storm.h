// Calls that are opened, sent one or more requests, and cancelled: at once, while they wait, or while they run.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <map>
#include <string>

#include "base/status.h"

namespace switchyard {

inline constexpr char kForwardMethod[] = "/switchyard.v1.Switchyard/Forward";
inline constexpr char kForwardStreamMethod[] = "/switchyard.v1.Switchyard/ForwardStream";
inline constexpr char kInferMethod[] = "/inference.GRPCInferenceService/ModelInfer";
inline constexpr char kInferStreamMethod[] = "/inference.GRPCInferenceService/ModelStreamInfer";

struct CancelStorm {
  std::string target;
  std::string method = kForwardMethod;
  grpc::ByteBuffer message;  // sent one to four times in calls of a stream
  int64_t num_calls = 1000;
  double rate_per_s = 0;  // 0 for as fast as possible
  int max_open = 64;
  int num_channels = 4;
  uint64_t seed = 1;
};

// Returns when all calls have ended: how many ended with each code.
std::map<absl::StatusCode, int64_t> RunCancelStorm(const CancelStorm& storm);

// A request for `num_rows` rows of zeros, serialized as one of the methods above expects it.
std::string RequestBytes(const std::string& method, const std::string& model, const std::string& layer,
                         int64_t num_rows, int64_t hidden_dim);
grpc::ByteBuffer ToByteBuffer(const std::string& bytes);

}  // namespace switchyard
