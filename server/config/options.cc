#include "server/config/options.h"

#include <google/protobuf/stubs/common.h>

#include <filesystem>
#include <set>

#include "absl/strings/escaping.h"
#include "rpc/address.h"
#include "rpc/loopback.h"

namespace switchyard {
namespace {

absl::Status CheckRange(absl::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, "=", value, ": expected ", low, " to ", high));
}

// Texts that calls answer with, or that go to workers: protobuf could not send the whole message.
absl::Status CheckUtf8(absl::string_view flag, const std::string& text) {
  if (google::protobuf::internal::IsStructurallyValidUTF8(text)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, "=", absl::CHexEscape(text),
                                                 ": expected UTF-8; rename the file or folder, or use a link to it"));
}

absl::Status CheckTexts(const ServerOptions& options) {
  for (const ModelOption& model : options.models) {
    SY_RETURN_IF_ERROR(CheckUtf8("--model", absl::StrCat(model.name, "=", model.location)));
  }
  SY_RETURN_IF_ERROR(CheckUtf8("--model_repository", options.model_repository));
  return CheckUtf8("--trace_file", options.trace_file);
}

absl::Status CheckModels(const ServerOptions& options) {
  if (options.models.empty() && options.model_repository.empty()) {
    return absl::InvalidArgumentError(
        "--model=NAME=DIR is needed at least once, or --model_repository=DIR with models to load later: there is "
        "nothing to serve");
  }
  std::error_code error;
  if (!options.model_repository.empty() && !std::filesystem::is_directory(options.model_repository, error)) {
    return absl::NotFoundError(absl::StrCat("--model_repository=", options.model_repository, ": expected a folder",
                                            error ? ": " : "", error ? error.message() : ""));
  }
  std::set<std::string> names;
  for (const ModelOption& model : options.models) {
    if (!names.insert(model.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("--model: the name ", model.name, " is given twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckExchange(const ServerOptions& options) {
  const std::string& exchange = options.exchange;
  const bool is_for_cpus = exchange == "shm" || exchange == "tcp" || exchange == "gloo";
  if (!is_for_cpus && exchange != "auto" && exchange != "direct" && exchange != "nccl") {
    return absl::InvalidArgumentError(
        absl::StrCat("--exchange=", exchange, ": expected auto, shm, tcp or gloo (CPUs), direct or nccl (GPUs)"));
  }
  const bool are_on_cpus = options.device == "cpu";
  if (options.local_workers == 0 || options.device == "auto" || exchange == "auto" || is_for_cpus == are_on_cpus) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--exchange=", exchange, " is for workers on ", is_for_cpus ? "CPUs" : "GPUs",
                   ", and these compute on --device=", options.device, "; --exchange=auto fits both"));
}

absl::Status CheckWorkers(const ServerOptions& options) {
  if ((options.local_workers > 0) == (options.await_workers > 0)) {
    return absl::InvalidArgumentError(
        "exactly one of --local_workers=N (start N workers here) and --await_workers=N (wait for N) is needed");
  }
  if (!IsLoopback(options.worker_host) && options.worker_token_file.empty() && options.worker_tls_ca.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--worker_host=", options.worker_host,
        " is reachable from other hosts: --worker_tls_cert, --worker_tls_key and --worker_tls_ca, or at least "
        "--worker_token_file, are needed, so that no stranger can join as a worker"));
  }
  SY_RETURN_IF_ERROR(CheckExchange(options));
  return CheckMutualTlsFlags(options.worker_tls());
}

absl::Status CheckSecurity(const ServerOptions& options) {
  SY_RETURN_IF_ERROR(CheckTlsFlags(options.client_tls()));
  if (!options.tls_client_ca.empty() && options.tls_cert.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tls_client_ca=", options.tls_client_ca,
                     ": --tls_cert and --tls_key are needed with it, because there is no mutual TLS without TLS"));
  }
  for (const FlagFile& tokens : {options.auth_tokens(), options.admin_tokens()}) {
    if (!tokens.given() || !options.tls_cert.empty() || IsLoopback(options.host)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        tokens.flag, "=", tokens.path, ": --tls_cert and --tls_key are needed with it, because --host=", options.host,
        " is reachable from other hosts and tokens would cross the network in clear"));
  }
  return absl::OkStatus();
}

absl::Status CheckConnections(const ServerOptions& options) {
  constexpr int64_t kMaxMs = 24 * 3'600'000;
  SY_RETURN_IF_ERROR(CheckRange("--keepalive_time_ms", options.keepalive_time_ms, 0, kMaxMs));
  SY_RETURN_IF_ERROR(CheckRange("--keepalive_timeout_ms", options.keepalive_timeout_ms, 1, kMaxMs));
  SY_RETURN_IF_ERROR(CheckRange("--max_connection_idle_ms", options.max_connection_idle_ms, 0, kMaxMs));
  SY_RETURN_IF_ERROR(CheckRange("--max_connection_age_ms", options.max_connection_age_ms, 0, kMaxMs));
  SY_RETURN_IF_ERROR(CheckRange("--max_connection_age_grace_ms", options.max_connection_age_grace_ms, 0, kMaxMs));
  SY_RETURN_IF_ERROR(CheckRange("--handshake_timeout_ms", options.handshake_timeout_ms, 1, kMaxMs));
  SY_RETURN_IF_ERROR(CheckRange("--max_concurrent_streams", options.max_concurrent_streams, 1, 1 << 20));
  SY_RETURN_IF_ERROR(CheckRange("--max_metadata_bytes", options.max_metadata_bytes, 1024, 1 << 20));
  if (options.grpc_memory_bytes == 0) return absl::OkStatus();
  return CheckRange("--grpc_memory_bytes", options.grpc_memory_bytes, 1 << 20, int64_t{1} << 40);
}

}  // namespace

absl::StatusOr<ModelOption> ParseModelOption(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos || equals + 1 == text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("--model=", text, ": expected NAME=DIR"));
  }
  return ModelOption{text.substr(0, equals), text.substr(equals + 1)};
}

int PreparingThreads(const ServerOptions& options, int num_cores) {
  if (options.gate_threads > 0) return options.gate_threads;
  const bool has_cpu_workers = options.local_workers > 0 && options.device == "cpu";
  return std::max(1, num_cores / (has_cpu_workers ? 4 : 2));
}

absl::Status ValidateOptions(const ServerOptions& options) {
  SY_RETURN_IF_ERROR(CheckTexts(options));
  SY_RETURN_IF_ERROR(CheckModels(options));
  SY_RETURN_IF_ERROR(ParseHost(options.host, "--host").status());
  SY_RETURN_IF_ERROR(ParseHost(options.worker_host, "--worker_host").status());
  SY_RETURN_IF_ERROR(CheckWorkers(options));
  SY_RETURN_IF_ERROR(CheckSecurity(options));
  SY_RETURN_IF_ERROR(CheckConnections(options));
  constexpr int64_t kMaxRows = int64_t{1} << 20;
  SY_RETURN_IF_ERROR(CheckRange("--port", options.port, 0, 65535));
  SY_RETURN_IF_ERROR(CheckRange("--http_port", options.http_port, 0, 65535));
  SY_RETURN_IF_ERROR(CheckRange("--worker_port", options.worker_port, 0, 65535));
  SY_RETURN_IF_ERROR(CheckRange("--worker_http_port", options.worker_http_port, 0, 65535 - options.local_workers));
  SY_RETURN_IF_ERROR(CheckRange("--local_workers", options.local_workers, 0, 1024));
  SY_RETURN_IF_ERROR(CheckRange("--await_workers", options.await_workers, 0, 1024));
  SY_RETURN_IF_ERROR(CheckRange("--link_spin_us", options.link_spin_us, -1, 1'000'000));
  SY_RETURN_IF_ERROR(CheckRange("--gpu_memory_limit", options.gpu_memory_limit, 0, int64_t{1} << 50));
  SY_RETURN_IF_ERROR(CheckRange("--max_batch_rows", options.max_batch_rows, 1, kMaxRows));
  SY_RETURN_IF_ERROR(CheckRange("--max_queue_delay_us", options.max_queue_delay_us, 0, 60'000'000));
  SY_RETURN_IF_ERROR(CheckRange("--priority_aging_ms", options.priority_aging_ms, 0, 3'600'000));
  SY_RETURN_IF_ERROR(CheckRange("--default_queue_timeout_us", options.default_queue_timeout_us, 0, kLongestTimeoutUs));
  SY_RETURN_IF_ERROR(CheckRange("--steps_in_flight", options.steps_in_flight, 1, 16));
  SY_RETURN_IF_ERROR(CheckRange("--gate_threads", options.gate_threads, 0, 1024));
  SY_RETURN_IF_ERROR(CheckRange("--max_request_bytes", options.max_request_bytes, 1, int64_t{1} << 30));
  SY_RETURN_IF_ERROR(
      CheckRange("--max_queued_bytes", options.max_queued_bytes, options.max_request_bytes, int64_t{1} << 40));
  SY_RETURN_IF_ERROR(CheckRange("--max_queued_rows", options.max_queued_rows, 1, int64_t{1} << 40));
  SY_RETURN_IF_ERROR(CheckRange("--worker_timeout_ms", options.worker_timeout_ms, 100, 3'600'000));
  if (options.step_timeout_ms != 0) {
    SY_RETURN_IF_ERROR(CheckRange("--step_timeout_ms", options.step_timeout_ms, 100, 86'400'000));
  }
  SY_RETURN_IF_ERROR(CheckRange("--slow_request_ms", options.slow_request_ms, 0, 3'600'000));
  return CheckRange("--drain_timeout_ms", options.drain_timeout_ms, 0, 3'600'000);
}

}  // namespace switchyard
