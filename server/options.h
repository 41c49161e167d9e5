// Settings of the front, with the defaults that its flags show.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/base/status.h"

namespace switchyard {

struct ModelOption {
  std::string name;
  std::string location;  // a checkpoint folder, or "synthetic:…"
};

struct ServerOptions {
  std::vector<ModelOption> models;

  // Where clients connect. Port 0 takes a free one.
  std::string host = "127.0.0.1";
  int port = 8001;
  int http_port = 8002;

  // Either this many workers are started and supervised here, …
  int local_workers = 0;
  std::string device = "auto";
  int64_t gpu_memory_limit = 0;  // bytes of GPU memory of each; 0 for all that is free
  std::string custom_expert;     // of local workers, see WorkerOptions
  bool allow_tf32 = false;       // fp32 products on GPUs may round their inputs to TF32
  int worker_threads = 0;        // CPU threads of each; 0 shares the cores out evenly
  std::string worker_binary;     // empty: beside this program
  // … or this many are awaited on the worker port.
  int await_workers = 0;
  std::string worker_host = "127.0.0.1";
  int worker_port = 8003;
  std::string worker_token_file;  // needed when worker_host is not loopback

  // "auto" is each checkpoint's own type, or the nearest wider one that the device's engine has.
  std::string compute_dtype = "auto";

  // A step never has more rows. More rows per step use the device better and make small requests wait longer.
  int64_t max_batch_rows = 4096;
  // How long rows may wait for company before an idle group takes them. 0 never waits.
  int64_t max_queue_delay_us = 0;
  // Steps prepared or running at once: one runs while the next is gated and uploaded.
  int steps_in_flight = 3;
  // Threads of the gate's router matmul; 0 takes a quarter of the cores.
  int gate_threads = 0;

  // The largest request, in bytes of rows, and what may be queued and in flight in all before new requests are refused.
  int64_t max_request_bytes = int64_t{256} << 20;
  int64_t max_queued_bytes = int64_t{1} << 30;
  int64_t max_queued_rows = int64_t{1} << 22;

  // A worker that does not answer pings for so long is given up (and killed, when local).
  int worker_timeout_ms = 2500;
  // Passed on to local workers.
  std::string log_level = "info";
  std::string log_format = "text";

  // How long SIGTERM waits for requests in flight.
  int drain_timeout_ms = 25'000;
};

// InvalidArgument names the flag, what was expected and what came.
absl::Status ValidateOptions(const ServerOptions& options);

// "NAME=LOCATION" of --model.
absl::StatusOr<ModelOption> ParseModelOption(const std::string& text);

// Whether binding to `host` reaches only this machine.
bool IsLoopback(const std::string& host);

}  // namespace switchyard
