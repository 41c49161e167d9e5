// switchyard_server: the front. It reads flags, prints one READY line when it serves, and drains on SIGTERM.
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdio>

#include "absl/time/time.h"
#include "base/deadlock_detection.h"
#include "base/logging.h"
#include "base/stop_signals.h"
#include "base/version.h"
#include "http/http_server.h"
#include "rpc/address.h"
#include "rpc/deadline.h"
#include "rpc/loopback.h"
#include "rpc/tls.h"
#include "server/api/calls/access_control.h"
#include "server/api/calls/grpc_server.h"
#include "server/api/calls/health.h"
#include "server/api/client_memory/client_memory.h"
#include "server/api/forward/switchyard_service.h"
#include "server/api/kserve/kserve_models.h"
#include "server/api/kserve/kserve_service.h"
#include "server/config/flags.h"
#include "server/front/front.h"
#include "server/front/metrics_page.h"

namespace switchyard {
namespace {

// Waits up to `timeout_ms` for one of the stop signals; returns whether one came.
bool StopRequested(const sigset_t& signals, int timeout_ms) {
  const timespec timeout = {timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000L};
  return sigtimedwait(&signals, nullptr, &timeout) > 0;
}

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(const Front& front, const MetricsPage& metrics) {
  const ServerOptions& options = front.options();
  return HttpServer::Start(
      {options.host, options.http_port}, [&metrics] { return metrics.Collect(); }, [&front] { return front.ready(); });
}

// How often readiness is checked for clients that watch the health service.
constexpr int kHealthIntervalMs = 100;

// Waits for a stop signal, then drains. Updates the health service meanwhile.
void ServeUntilStopped(Front& front, HealthReporter& health, const sigset_t& stop_signals) {
  do {
    health.Update(front.ready(), front.models()->layers());
  } while (!StopRequested(stop_signals, kHealthIntervalMs));
  health.Update(false, {});
  front.Drain();
}

// The checks of --check_config, which opens no model and no port.
absl::Status CheckConfig(const ServerOptions& options) {
  SY_RETURN_IF_ERROR(ValidateOptions(options));
  SY_RETURN_IF_ERROR(AccessControl::Open(options).status());
  SY_RETURN_IF_ERROR(ReadTlsFiles(options.client_tls()).status());
  return ReadTlsFiles(options.worker_tls()).status();
}

// Returns null unless clients may share memory.
std::unique_ptr<ClientMemory> CreateClientMemory(const ServerOptions& options) {
  if (!options.allow_client_shm) return nullptr;
  if (!IsLoopback(options.host)) {
    spdlog::warn(
        "--allow_client_shm: every client that reaches {} may read and write shared memory that this process may",
        options.host);
  }
  return std::make_unique<ClientMemory>(options.max_queued_bytes);
}

absl::Status Serve(const ServerOptions& options, const sigset_t& stop_signals) {
  SY_RETURN_IF_ERROR(CheckConfig(options));
  if (options.check_config) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(const auto access, AccessControl::Open(options));
  SY_ASSIGN_OR_RETURN(const auto front, Front::Create(options));
  const KserveModels models([&front] { return front->models(); });
  const std::unique_ptr<grpc::Service> native = MakeSwitchyardService(front.get());
  const std::unique_ptr<ClientMemory> client_memory = CreateClientMemory(options);
  const std::unique_ptr<grpc::Service> kserve =
      MakeKserveService(front.get(), &models, access.get(), client_memory.get());
  int port = 0;
  SY_ASSIGN_OR_RETURN(const auto server, StartGrpcServer(options, *access, {native.get(), kserve.get()}, &port));
  const MetricsPage metrics(front.get());
  SY_ASSIGN_OR_RETURN(const auto http, StartHttp(*front, metrics));
  HealthReporter health(server.get(), {kSwitchyardServiceName, kKserveServiceName});
  health.Update(false, front->models()->layers());
  const absl::Status serving = front->WaitUntilServing([&] { return StopRequested(stop_signals, 0); });
  if (serving.ok()) {
    std::printf("READY grpc=%s http=%s workers=%d\n", JoinHostPort(options.host, port).c_str(),
                JoinHostPort(options.host, http->port()).c_str(), front->num_ranks());
    std::fflush(stdout);
    ServeUntilStopped(*front, health, stop_signals);
  }
  front->repository().Stop();  // ends the changes that RPCs wait for
  server->Shutdown(DeadlineAfter(absl::Seconds(1)));
  return absl::IsCancelled(serving) ? absl::OkStatus() : serving;
}

// Each connection takes a file descriptor. With the usual soft limit of 1024, idle connections would keep others out.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::Status RunServer(const ServerOptions& options) {
  StopLookingForDeadlocks();
  SY_RETURN_IF_ERROR(SetUpLogging({options.log_level, options.log_format, "front"}));
  const sigset_t stop_signals = KeepSignalsForThisThread({SIGTERM, SIGINT});  // before any thread starts
  signal(SIGPIPE, SIG_IGN);
  RaiseDescriptorLimit();
  // The sender of a malformed message is told what is wrong with it. Protobuf would also write that to stderr, in a
  // format of its own.
  google::protobuf::SetLogHandler(nullptr);
  return Serve(options, stop_signals);
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  switchyard::ServerOptions options;
  if (const std::optional<int> exit_code = switchyard::ParseFlags(argc, argv, &options)) return *exit_code;
  const absl::Status status = switchyard::RunServer(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "switchyard_server: %s\n", std::string(status.message()).c_str());
  return 1;
}
