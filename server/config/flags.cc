#include "server/config/flags.h"

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "rpc/version_line.h"
#include "server/config/config_file.h"

namespace switchyard {
namespace {

constexpr char kExamples[] = R"(Examples:
  A checkpoint on two CPU workers:
    switchyard_server --model=jargon=tests/testdata/jargon-moe --local_workers=2 --device=cpu
  Random weights of a given shape, for benchmarks:
    switchyard_server --model=bench=synthetic:dim=2048,hidden=768,experts=128,topk=8,act=silu,glu=1,bias=0,dtype=bf16 \
                      --local_workers=1
  Everything in a file, see deploy/switchyard.textproto:
    switchyard_server --config=switchyard.textproto
  Workers on other hosts:
    switchyard_server --model=m=/models/m --await_workers=2 --worker_host=0.0.0.0 --worker_token_file=secret
    switchyard_worker --front=HOST:8003 --worker_token_file=secret
  (on each of two)

Signals:
  TERM, INT  drain and end; HUP  open files anew; USR1  log the state; QUIT  end at once

When every model can be served it prints one line: READY grpc=HOST:PORT http=HOST:PORT workers=N)";

void DefineServing(CLI::App& app, ServerOptions* options) {
  app.add_option_function<std::vector<std::string>>(
      "--model",
      [options](const std::vector<std::string>& texts) {
        for (const std::string& text : texts) {
          auto model = ParseModelOption(text);
          if (!model.ok()) throw CLI::ValidationError(std::string(model.status().message()));
          options->models.push_back(*std::move(model));
        }
      },
      "NAME=DIR of a checkpoint, or NAME=synthetic:KEY=VALUE,...; repeat for more models");
  app.add_option("--model_repository", options->model_repository,
                 "folder whose sub-folders with a config.json can be loaded at run time, each by its name");
  app.add_option("--host", options->host, "address that clients connect to")->capture_default_str();
  app.add_option("--port", options->port, "gRPC port; 0 takes a free one")->capture_default_str();
  app.add_option("--http_port", options->http_port, "port of /metrics, /livez and /readyz; 0 takes a free one")
      ->capture_default_str();
  app.add_flag(
      "--allow_client_shm", options->allow_client_shm,
      "let KServe clients leave tensors in shared memory of this host, and of its GPUs; see docs/operations.md");
  app.add_option("--compute_dtype", options->compute_dtype,
                 "auto (each checkpoint's own), fp64, fp32, fp16 or bf16; rows of other types are converted")
      ->capture_default_str();
}

void DefineSecurity(CLI::App& app, ServerOptions* options) {
  app.add_option("--tls_cert", options->tls_cert, "certificate of the gRPC port, in PEM; read again when it changes");
  app.add_option("--tls_key", options->tls_key, "the certificate's key");
  app.add_option("--tls_client_ca", options->tls_client_ca,
                 "mutual TLS: clients must show a certificate that leads to one of these");
  app.add_option("--auth_token_file", options->auth_token_file,
                 "file of tokens, one a line; every call must bring one of them");
  app.add_option("--admin_token_file", options->admin_token_file,
                 "the same for calls that change the server: load and unload, settings, shared memory");
  app.add_flag("--allow_remote_admin", options->allow_remote_admin,
               "without --admin_token_file: let everybody change the server although --host is not loopback");
}

void DefineConnections(CLI::App& app, ServerOptions* options) {
  app.add_option("--keepalive_time_ms", options->keepalive_time_ms,
                 "ping a client's connection that was silent for so long; 0 never")
      ->capture_default_str();
  app.add_option("--keepalive_timeout_ms", options->keepalive_timeout_ms,
                 "close a connection whose ping is not answered by then")
      ->capture_default_str();
  app.add_option("--max_connection_idle_ms", options->max_connection_idle_ms,
                 "close a connection without calls for so long; 0 never")
      ->capture_default_str();
  app.add_option("--max_connection_age_ms", options->max_connection_age_ms,
                 "ask clients to reconnect after so long; 0 never")
      ->capture_default_str();
  app.add_option("--max_connection_age_grace_ms", options->max_connection_age_grace_ms,
                 "how long calls of such a connection may go on; 0 for as long as they take")
      ->capture_default_str();
  app.add_option("--handshake_timeout_ms", options->handshake_timeout_ms,
                 "close a connection that has not become an HTTP/2 one by then")
      ->capture_default_str();
  app.add_option("--max_concurrent_streams", options->max_concurrent_streams, "calls of one connection at once")
      ->capture_default_str();
  app.add_option("--compression", options->compression,
                 "on or off: accept compressed requests, whose size is limited only as it travels")
      ->capture_default_str();
  app.add_option("--client_ids", options->client_ids,
                 "on or off: believe the metadata x-client-id, which says for whom a call is")
      ->capture_default_str();
  app.add_option("--max_metadata_bytes", options->max_metadata_bytes, "metadata of one call at most")
      ->capture_default_str();
  app.add_option("--grpc_memory_bytes", options->grpc_memory_bytes,
                 "memory of messages on their way in at most, in bytes or with K, M, G, Ki, Mi, Gi; 0 for "
                 "--max_queued_bytes and four times --max_request_bytes, or a quarter of the memory that this process "
                 "may use if that is less")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
}

void DefineWorkers(CLI::App& app, ServerOptions* options) {
  app.add_option("--local_workers", options->local_workers, "start and supervise this many workers on this host");
  app.add_option("--device", options->device,
                 "device of local workers: auto, cpu, or cuda for a GPU each; cuda:N for one worker on GPU N")
      ->capture_default_str();
  app.add_option(
         "--gpu_memory_limit", options->gpu_memory_limit,
         "GPU memory of each local worker at most, in bytes or with K, M, G, Ki, Mi, Gi; 0 for all that is free")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_flag("--allow_tf32", options->allow_tf32, "let fp32 products on GPUs round their inputs to TF32, for speed");
  app.add_option("--custom_expert", options->custom_expert,
                 "registered C++ expert that replaces the checkpoints' own (CPU); see docs/models.md");
  app.add_option("--worker_threads", options->worker_threads,
                 "CPU threads of each local worker; 0 shares the cores out evenly")
      ->capture_default_str();
  app.add_option("--link_spin_us", options->link_spin_us,
                 "local workers and the threads that read from them look for the next message for so long before they "
                 "sleep; 0 never; -1 for 1000, or for 0 where CPU time is limited")
      ->capture_default_str();
  app.add_option("--worker_binary", options->worker_binary, "the worker program; default: beside this one");
  app.add_option("--worker_http_port", options->worker_http_port,
                 "local worker i serves /metrics of its own at this port + i; 0 for none")
      ->capture_default_str();
  app.add_option("--await_workers", options->await_workers, "wait for this many workers from elsewhere instead");
  app.add_option("--worker_host", options->worker_host, "address that awaited workers join at")->capture_default_str();
  app.add_option("--worker_port", options->worker_port, "port that awaited workers join at; 0 takes a free one")
      ->capture_default_str();
  app.add_option("--worker_token_file", options->worker_token_file,
                 "file with the secret that awaited workers must bring; this or TLS is needed unless --worker_host is "
                 "loopback, where only the front's own user may join without it");
  app.add_option("--worker_tls_cert", options->worker_tls_cert, "certificate of the worker port, for mutual TLS");
  app.add_option("--worker_tls_key", options->worker_tls_key, "the certificate's key");
  app.add_option("--worker_tls_ca", options->worker_tls_ca, "roots that workers' certificates must lead to");
  app.add_option(
         "--exchange", options->exchange,
         "how workers exchange rows: auto, shm (CPUs of one host), tcp or gloo (CPUs), direct (GPUs of one host "
         "that reach each other's memory), nccl (GPUs); auto takes shm or direct where it can, and else tcp or "
         "nccl")
      ->capture_default_str();
  app.add_option("--worker_timeout_ms", options->worker_timeout_ms, "give up a worker that is silent for so long")
      ->capture_default_str();
  app.add_option("--step_timeout_ms", options->step_timeout_ms,
                 "give up a step, and the workers to blame, after so long; 0 for a multiple of what such steps take")
      ->capture_default_str();
}

void DefineBatching(CLI::App& app, ServerOptions* options) {
  app.add_option("--max_batch_rows", options->max_batch_rows, "rows of one step at most")->capture_default_str();
  app.add_option("--max_queue_delay_us", options->max_queue_delay_us,
                 "how long rows may wait for company while the workers are idle")
      ->capture_default_str();
  app.add_option("--priority_aging_ms", options->priority_aging_ms,
                 "requests of lower priority that waited so long share the place of the highest")
      ->capture_default_str();
  app.add_option("--default_queue_timeout_us", options->default_queue_timeout_us,
                 "requests without a timeout of their own end with DEADLINE_EXCEEDED after so long in the queue; 0 for "
                 "never")
      ->capture_default_str();
  app.add_option("--steps_in_flight", options->steps_in_flight, "steps prepared or running at once")
      ->capture_default_str();
  app.add_option("--gate_threads", options->gate_threads,
                 "threads that copy, gate and plan the rows of a step; 0 takes half of the cores, or a quarter beside "
                 "local workers on the CPU")
      ->capture_default_str();
  app.add_option("--max_request_bytes", options->max_request_bytes, "rows of one request at most, in bytes")
      ->capture_default_str();
  app.add_option("--max_queued_rows", options->max_queued_rows,
                 "rows queued and in flight at most; further requests get RESOURCE_EXHAUSTED, and those of one client "
                 "before others'")
      ->capture_default_str();
  app.add_option("--max_queued_bytes", options->max_queued_bytes, "the same in bytes")->capture_default_str();
}

void DefineOperation(CLI::App& app, ServerOptions* options) {
  app.add_option("--warmup", options->warmup, "on or off: run every layer before READY, so that no request pays for it")
      ->capture_default_str();
  app.add_option("--drain_timeout_ms", options->drain_timeout_ms, "how long SIGTERM waits for requests in flight")
      ->capture_default_str();
  app.add_option("--log_level", options->log_level, "trace, debug, info, warn, error or off")->capture_default_str();
  app.add_option("--log_format", options->log_format, "text or json")->capture_default_str();
  app.add_option("--slow_request_ms", options->slow_request_ms,
                 "log requests that take so long, with the time of their stages; 0 logs none")
      ->capture_default_str();
  app.add_option(
      "--trace_file", options->trace_file,
      "where traces of requests go, as JSON; which are traced is set by the TraceSetting call, none at first");
}

}  // namespace

void DefineFlags(CLI::App& app, ServerOptions* options) {
  app.description("switchyard_server: serves the Mixture-of-Experts layers of checkpoints over gRPC.");
  app.set_version_flag("--version", VersionLine("switchyard_server"));
  app.footer(kExamples);
  app.config_formatter(std::make_shared<ServerConfigReader>());
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_config("--config", "", "file with the flags, as the text form of proto/config.proto; those given here win");
  app.add_flag("--check_config", options->check_config, "check flags and files, and end");
  DefineServing(app, options);
  DefineSecurity(app, options);
  DefineConnections(app, options);
  DefineWorkers(app, options);
  DefineBatching(app, options);
  DefineOperation(app, options);
}

std::optional<int> ParseFlags(int argc, const char* const* argv, ServerOptions* options) {
  CLI::App app;
  DefineFlags(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return std::nullopt;
}

}  // namespace switchyard
