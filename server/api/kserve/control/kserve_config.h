// The part of a model's configuration that says how it is served: queue, batches and ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/model_config.pb.h"

namespace switchyard {

struct ServingFacts {
  int64_t max_batch_rows = 0;
  int64_t max_queue_delay_us = 0;
  int steps_in_flight = 1;
  std::vector<std::string> devices;  // by rank: "cpu", "cuda:1", or empty for a rank that has not joined
};

// Adds `facts` to a configuration that has its name already.
void DescribeServing(const ServingFacts& facts, inference::ModelConfig* config);

}  // namespace switchyard
