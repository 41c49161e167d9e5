// One run of the simulated world: a front and its workers under callers and faults, all drawn from one seed, and what
// must hold whatever happens.
//
//   storm    callers send requests while faults strike
//   calm     nothing strikes any more; everything must be answered, and the group must serve, within a bounded time
//   proof    every slot and every output is used at once
//   end      the front drains, or ends in the middle of the storm; nothing is left of requests, models and streams
//
// Equal seeds give equal runs.
#pragma once

#include <cstdint>
#include <string>

#include "tests/simulation/faults.h"

namespace switchyard::simulation {

struct RunOptions {
  bool prints = false;            // every event
  bool corrupts_results = false;  // workers compute wrongly, which must be found
};

struct Outcome {
  uint64_t seed = 0;
  std::string failure;  // empty when everything held
  std::string history;  // the world and the faults that struck it
  uint64_t hash = 0;    // of everything that happened
  Coverage coverage;
  int64_t num_events = 0, num_formations = 0, num_requests = 0, num_answers = 0;
  Nanos recovery{};  // from the last fault until all was well again
  bool ok() const { return failure.empty(); }
  // What failed, what struck, and how to see it again.
  std::string Report() const;
};

Outcome RunWorld(uint64_t seed, const RunOptions& options = {});

}  // namespace switchyard::simulation
