// Requests on a closed loop over gRPC's callback API: a fixed number is in flight, and the end of each starts the next.
// This is the cheapest client that gRPC allows: message bytes are shared, not copied, and answers are only counted.
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
  std::vector<grpc::GenericStub>* stubs = nullptr;  // one for each connection; the loop's places are spread over them
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

// Runs unary calls. The result counts the calls that end in a window, which begins when each place in the loop has had
// one call. The window lasts for `duration` or for 2 · in_flight calls, whichever is longer. Returns the first error,
// if any.
absl::StatusOr<LoopResult> RunClosedLoop(const LoopTarget& target, int in_flight, std::chrono::nanoseconds duration);

// Messages on streams, one stream for each connection.
struct StreamTarget {
  std::vector<grpc::GenericStub>* stubs = nullptr;  // the loop's places are spread over them
  std::string method;
  std::vector<grpc::ByteBuffer> requests;  // one for each place in the loop
  // The place whose request `answer` is for, or the reason why there is none.
  absl::StatusOr<size_t> (*place_of)(const grpc::ByteBuffer& answer) = nullptr;
};

// Like RunClosedLoop, with messages and their answers instead of calls.
absl::StatusOr<LoopResult> RunStreamLoop(const StreamTarget& target, std::chrono::nanoseconds duration);

}  // namespace switchyard
