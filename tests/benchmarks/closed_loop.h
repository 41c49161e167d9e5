// Requests on a closed loop over gRPC's callback API: a fixed number in flight, each one's end starts the next. The
// cheapest client that gRPC has: message bytes are shared, not copied, and answers are only counted.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/status.h"
#include "cli/histogram.h"

namespace switchyard {

struct LoopTarget {
  std::vector<grpc::GenericStub>* stubs = nullptr;  // one for each connection; places in the loop share them out
  std::string method;
  grpc::ByteBuffer request;
  size_t min_answer_bytes = 0;  // a shorter answer is an error
};

struct LoopResult {
  int64_t num_calls = 0;
  double seconds = 0;
  LatencyHistogram latency;

  void Add(const LoopResult& other);
  double calls_per_second() const { return static_cast<double>(num_calls) / seconds; }
};

// Unary calls. Counts those that end in a window of `duration` or of 2 · in_flight calls, whichever is longer, that
// begins when each place in the loop has had one call. The first error otherwise.
absl::StatusOr<LoopResult> RunClosedLoop(const LoopTarget& target, int in_flight, std::chrono::nanoseconds duration);

// Messages on streams, one for each connection.
struct StreamTarget {
  std::vector<grpc::GenericStub>* stubs = nullptr;  // places in the loop share them out
  std::string method;
  std::vector<grpc::ByteBuffer> requests;  // of each place in the loop
  // The place that an answer is to, or why there is none.
  absl::StatusOr<size_t> (*place_of)(const grpc::ByteBuffer& answer) = nullptr;
};

// Likewise, of messages and their answers.
absl::StatusOr<LoopResult> RunStreamLoop(const StreamTarget& target, std::chrono::nanoseconds duration);

}  // namespace switchyard
