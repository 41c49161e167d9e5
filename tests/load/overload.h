// More requests than the server can serve, from callers that do not wait for each other.
#pragma once

#include <chrono>
#include <string>

#include "cli/load_generator.h"

namespace switchyard {

// All callers of an overload are one client to the server.
inline constexpr char kOverloadClient[] = "overload";

struct Overload {
  std::string target;
  std::string model;
  std::string layer = "0";
  int64_t num_rows = 64;
  int64_t hidden_dim = 128;
  int num_channels = 8;
  std::chrono::milliseconds deadline{1000};  // of each request
};

struct OverloadResult {
  LoadStats stats;
  LatencyHistogram refusal_latency;  // of RESOURCE_EXHAUSTED, as the caller sees it
  int64_t refused = 0;
  int64_t refused_without_pushback = 0;

  double goodput_per_s() const { return static_cast<double>(stats.num_ok) / stats.elapsed_s; }
  double offered_per_s() const {
    return static_cast<double>(stats.num_ok + stats.num_failed() + stats.num_unsent) / stats.elapsed_s;
  }
};

// Runs the load. A closed loop measures the peak, in answers per second; an open loop with a higher rate is an
// overload.
OverloadResult RunLoad(const Overload& overload, const LoadOptions& options);

}  // namespace switchyard
