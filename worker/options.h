// Settings of one worker process.
#pragma once

#include <string>

namespace switchyard {

struct WorkerOptions {
  // Address of the front's worker port.
  std::string front;
  // "cpu", "cuda:N" or "auto".
  std::string device = "auto";
  // Address that the other ranks reach this one at for the exchange.
  std::string exchange_host = "127.0.0.1";
  // Threads of the CPU engine; 0 uses every core the process may run on.
  int num_threads = 0;
  // File with the secret that the front asks of workers; empty for none.
  std::string token_file;
  // How long to keep trying to reach a front that is not up yet.
  int join_timeout_ms = 60'000;
  // Set by a front that started this worker: its number there, and the inherited socket of the shared-memory link.
  int local_index = -1;
  int link_fd = -1;
};

}  // namespace switchyard
