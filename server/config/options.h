// Settings of the front, with the defaults that its flags show.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "rpc/flag_file.h"
#include "rpc/tls_files.h"

namespace switchyard {

struct ModelOption {
  std::string name;
  std::string location;  // a checkpoint folder, or "synthetic:…"
};

// 24 hours. A request's timeout_us beyond this counts as none, and a queue timeout beyond this counts as this, because
// clocks would overflow.
constexpr int64_t kLongestTimeoutUs = int64_t{86'400} * 1'000'000;

struct ServerOptions {
  std::vector<ModelOption> models;
  // A folder whose sub-folders with a config.json can be loaded at run time, by their names. Empty for none.
  std::string model_repository;

  // Where clients connect. Port 0 takes a free one.
  std::string host = "127.0.0.1";
  int port = 8001;
  int http_port = 8002;
  // Whether clients may register memory that they share with this server, and leave tensors there.
  bool allow_client_shm = false;

  // Security of the gRPC port, all in files; see rpc/tls.h and rpc/token_list.h.
  std::string tls_cert;  // with tls_key: TLS
  std::string tls_key;
  std::string tls_client_ca;     // clients must show a certificate of these roots
  std::string auth_token_file;   // every call must carry one of these tokens
  std::string admin_token_file;  // calls that change the server must carry one of these
  bool allow_remote_admin = false;

  // Limits on clients' connections. 0 means no limit.
  int keepalive_time_ms = 60'000;     // after this time without traffic the front pings the connection …
  int keepalive_timeout_ms = 20'000;  // … and closes it when no answer comes within this time
  int max_connection_idle_ms = 0;
  int max_connection_age_ms = 0;
  int max_connection_age_grace_ms = 30'000;
  int handshake_timeout_ms = 10'000;  // until the first HTTP/2 settings must have come
  int max_concurrent_streams = 1024;  // of one connection
  int max_metadata_bytes = 16 << 10;  // of one call
  bool client_ids = true;             // whether callers' metadata x-client-id is believed
  bool compression = true;            // calls may be compressed; gRPC limits only their compressed size
  // How much memory gRPC may hold for messages on their way in. 0 means max_queued_bytes + 4 · max_request_bytes, or a
  // quarter of the memory that this process may use if that is less, but room for two requests.
  int64_t grpc_memory_bytes = 0;

  // Either the front starts and supervises this many workers, …
  int local_workers = 0;
  std::string device = "auto";
  int64_t gpu_memory_limit = 0;  // bytes of GPU memory for each; 0 for all that is free
  std::string custom_expert;     // of local workers, see WorkerOptions
  bool allow_tf32 = false;       // fp32 products on GPUs may round their inputs to TF32
  int worker_threads = 0;        // CPU threads of each worker; 0 shares the cores out evenly
  std::string worker_binary;     // empty: the one beside this program
  // How long at most both ends of a local link spin before they sleep; 0 never spins. -1 means 1000, or 0 where CPU
  // time is limited.
  int link_spin_us = -1;
  int worker_http_port = 0;  // worker i serves its metrics at this port + i; 0 for none
  // … or it waits for this many workers on the worker port.
  int await_workers = 0;
  std::string worker_host = "127.0.0.1";
  int worker_port = 8003;
  std::string worker_token_file;  // this or worker_tls_* is needed when worker_host is not loopback
  // All three are set or none. With them, workers and front show each other certificates.
  std::string worker_tls_cert;
  std::string worker_tls_key;
  std::string worker_tls_ca;

  // How workers exchange rows: "auto", "shm", "tcp", "gloo", "direct" or "nccl"
  // (server/group/membership/exchange_choice.h).
  std::string exchange = "auto";

  // "auto" means each checkpoint's own type, or the nearest wider type that the device's engine has.
  std::string compute_dtype = "auto";

  // The most rows of a step. More rows per step use the device better and make small requests wait longer.
  int64_t max_batch_rows = 4096;
  // How long rows may wait for further rows before an idle group takes them. 0 never waits.
  int64_t max_queue_delay_us = 0;
  // A request that has waited this long shares the turns of the highest priority.
  int64_t priority_aging_ms = 1000;
  // How long the first row of a request may wait in the queue when the request sets no limit. 0 means no limit.
  int64_t default_queue_timeout_us = 0;
  // How many steps are prepared or running at once: one runs while the next is gated and uploaded.
  int steps_in_flight = 3;
  // Threads that prepare steps: they copy rows, gate them and plan. 0 chooses (PreparingThreads).
  int gate_threads = 0;

  // The largest request, in bytes of rows; then the bytes and the rows that may be queued and in flight in all before
  // new requests are refused.
  int64_t max_request_bytes = int64_t{256} << 20;
  int64_t max_queued_bytes = int64_t{1} << 30;
  int64_t max_queued_rows = int64_t{1} << 22;

  // A worker that does not answer pings for this long is given up (and killed, when it is local).
  int worker_timeout_ms = 2500;
  // A step that takes longer is given up: the ranks to blame are replaced, or the group forms anew. 0 learns the limit
  // from how long steps of that layer and size take.
  int step_timeout_ms = 0;
  // These are also passed on to local workers.
  std::string log_level = "info";
  std::string log_format = "text";

  // Whether the front runs steps of every layer before it is ready, so that no request pays for one-time costs.
  bool warmup = true;
  // Requests that take this long or longer are logged as slow. 0 logs none.
  int64_t slow_request_ms = 1000;
  // The file that traces of requests go to. Empty when requests cannot be traced.
  std::string trace_file;

  // How long SIGTERM waits for requests in flight.
  int drain_timeout_ms = 25'000;
  // Whether to check only that these settings could be served with, and then exit.
  bool check_config = false;

  TlsFiles client_tls() const {
    return {{"--tls_cert", tls_cert}, {"--tls_key", tls_key}, {"--tls_client_ca", tls_client_ca}};
  }
  TlsFiles worker_tls() const {
    return {{"--worker_tls_cert", worker_tls_cert},
            {"--worker_tls_key", worker_tls_key},
            {"--worker_tls_ca", worker_tls_ca}};
  }
  FlagFile auth_tokens() const { return {"--auth_token_file", auth_token_file}; }
  FlagFile admin_tokens() const { return {"--admin_token_file", admin_token_file}; }
  // grpc_memory_bytes, or the value that 0 stands for in a process that may use `memory_limit` bytes.
  int64_t grpc_memory(int64_t memory_limit) const {
    if (grpc_memory_bytes > 0) return grpc_memory_bytes;
    return std::min(max_queued_bytes + 4 * max_request_bytes, std::max(memory_limit / 4, 2 * max_request_bytes));
  }
};

// The threads that prepare steps: gate_threads or, where that is 0, a share of the `num_cores` that the front may use.
// Workers that compute on this host's CPU need most of them; otherwise half is left to gRPC and to answers.
int PreparingThreads(const ServerOptions& options, int num_cores);

// InvalidArgument names the flag, the expected value and the value found.
absl::Status ValidateOptions(const ServerOptions& options);

// Parses "NAME=LOCATION", the value of --model.
absl::StatusOr<ModelOption> ParseModelOption(const std::string& text);

}  // namespace switchyard
