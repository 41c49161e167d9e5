// Settings of one worker process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"
#include "rpc/tls_files.h"

namespace switchyard {

struct WorkerOptions {
  // Address of the front's worker port.
  std::string front;
  // "cpu", "cuda" (the front's worker i takes GPU i), "cuda:N" or "auto".
  std::string device = "auto";
  // The most bytes of GPU memory that weights and workspace may take; 0 for all free memory.
  int64_t gpu_memory_limit = 0;
  // Whether fp32 products on a GPU may round their inputs to TF32.
  bool allow_tf32 = false;
  // Name of a registered custom expert (moe/experts/custom_expert.h) that replaces every expert, on the CPU; empty for
  // the checkpoint's own formula.
  std::string custom_expert;
  // Address, name or interface of this machine at which the other ranks reach this rank for the exchange. Empty for the
  // address from which it reaches the front.
  std::string exchange_host;
  // Threads of the CPU engine; 0 for every core that the process may run on.
  int num_threads = 0;
  // File with the secret that the front asks of workers; empty for none.
  std::string token_file;
  // Files of this worker's certificate and key, and of the roots for the front's certificate; empty paths for no TLS.
  TlsFiles tls = {{"--worker_tls_cert", ""}, {"--worker_tls_key", ""}, {"--worker_tls_ca", ""}};
  // Address and port of /metrics, /livez and /readyz, which are not served without a port. Port 0 takes a free port;
  // otherwise a front's worker i takes port + i.
  std::string http_host = "127.0.0.1";
  std::optional<int> http_port;
  // How long to keep trying to join a front that is not up yet, or has no rank free.
  int join_timeout_ms = 60'000;
  // A worker that a front did not start takes its front for lost when it hears nothing from it for this long; 0 for
  // never.
  int front_timeout_ms = 10'000;
  // How long such a worker keeps its weights and tries to join again after it has lost its front; 0 to end at once.
  int rejoin_timeout_ms = 600'000;
  // Set by a front that started this worker: its number there and how many there are, and the inherited socket of the
  // shared-memory link.
  int local_index = -1;
  int num_local_workers = 1;
  int link_fd = -1;
  // How long to poll that link for the next step before sleeping, in microseconds.
  int link_spin_us = 0;
};

// InvalidArgument, naming the flag, for an address that cannot be one, for a time that is too short, and for files of
// TLS that are not complete.
absl::Status CheckOptions(const WorkerOptions& options);

// The address, as digits, that exchange_host means. Unavailable while the front's name does not resolve.
absl::StatusOr<std::string> ExchangeAddress(const WorkerOptions& options);

}  // namespace switchyard
