#include "server/flags.h"

#include <string>
#include <vector>

#include "moe/base/version.h"

namespace switchyard {
namespace {

constexpr char kExamples[] = R"(Examples:
  A checkpoint on two CPU workers:
    switchyard_server --model=jargon=tests/testdata/jargon-moe --local_workers=2 --device=cpu
  Random weights of a given shape, for benchmarks:
    switchyard_server --model=bench=synthetic:dim=2048,hidden=768,experts=128,topk=8,act=silu,glu=1,bias=0,dtype=bf16 \
                      --local_workers=1
  Workers on other hosts:
    switchyard_server --model=m=/models/m --await_workers=2 --worker_host=0.0.0.0 --worker_token_file=secret
    switchyard_worker --front=HOST:8003 --worker_token_file=secret --exchange_host=ADDRESS
  (on each of two)

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
         "NAME=DIR of a checkpoint, or NAME=synthetic:KEY=VALUE,...; repeat for more models")
      ->required();
  app.add_option("--host", options->host, "address that clients connect to")->capture_default_str();
  app.add_option("--port", options->port, "gRPC port; 0 takes a free one")->capture_default_str();
  app.add_option("--http_port", options->http_port, "port of /metrics, /livez and /readyz; 0 takes a free one")
      ->capture_default_str();
  app.add_option("--compute_dtype", options->compute_dtype,
                 "auto (each checkpoint's own), fp64, fp32, fp16 or bf16; rows of other types are converted")
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
  app.add_option("--worker_binary", options->worker_binary, "the worker program; default: beside this one");
  app.add_option("--await_workers", options->await_workers, "wait for this many workers from elsewhere instead");
  app.add_option("--worker_host", options->worker_host, "address that awaited workers join at")->capture_default_str();
  app.add_option("--worker_port", options->worker_port, "port that awaited workers join at; 0 takes a free one")
      ->capture_default_str();
  app.add_option("--worker_token_file", options->worker_token_file,
                 "file with the secret that awaited workers must bring; needed unless --worker_host is loopback");
  app.add_option("--worker_timeout_ms", options->worker_timeout_ms, "give up a worker that is silent for so long")
      ->capture_default_str();
}

void DefineBatching(CLI::App& app, ServerOptions* options) {
  app.add_option("--max_batch_rows", options->max_batch_rows, "rows of one step at most")->capture_default_str();
  app.add_option("--max_queue_delay_us", options->max_queue_delay_us,
                 "how long rows may wait for company while the workers are idle")
      ->capture_default_str();
  app.add_option("--steps_in_flight", options->steps_in_flight, "steps prepared or running at once")
      ->capture_default_str();
  app.add_option("--gate_threads", options->gate_threads,
                 "threads of the router matmul; 0 takes a quarter of the cores")
      ->capture_default_str();
  app.add_option("--max_request_bytes", options->max_request_bytes, "rows of one request at most, in bytes")
      ->capture_default_str();
  app.add_option("--max_queued_rows", options->max_queued_rows,
                 "rows queued and in flight at most; further requests get RESOURCE_EXHAUSTED")
      ->capture_default_str();
  app.add_option("--max_queued_bytes", options->max_queued_bytes, "the same in bytes")->capture_default_str();
}

void DefineOperation(CLI::App& app, ServerOptions* options) {
  app.add_option("--drain_timeout_ms", options->drain_timeout_ms, "how long SIGTERM waits for requests in flight")
      ->capture_default_str();
  app.add_option("--log_level", options->log_level, "trace, debug, info, warn, error or off")->capture_default_str();
  app.add_option("--log_format", options->log_format, "text or json")->capture_default_str();
}

}  // namespace

void DefineFlags(CLI::App& app, ServerOptions* options) {
  app.description("switchyard_server: serves the Mixture-of-Experts layers of checkpoints over gRPC.");
  app.set_version_flag("--version", std::string(kVersion));
  app.footer(kExamples);
  DefineServing(app, options);
  DefineWorkers(app, options);
  DefineBatching(app, options);
  DefineOperation(app, options);
}

}  // namespace switchyard
