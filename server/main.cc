// switchyard_server: the front. It reads flags, prints one READY line when it serves, and drains on SIGTERM.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>

#include "absl/time/time.h"
#include "base/logging/logging.h"
#include "base/process/bounded_write.h"
#include "base/process/deadlock_detection.h"
#include "base/process/exhausted.h"
#include "base/process/process_start.h"
#include "base/process/stop_signals.h"
#include "base/version.h"
#include "http/http_server.h"
#include "rpc/address.h"
#include "rpc/deadline.h"
#include "rpc/end_connections.h"
#include "rpc/library_logs.h"
#include "rpc/listen.h"
#include "rpc/loopback.h"
#include "rpc/tls.h"
#include "server/api/calls/access_control.h"
#include "server/api/calls/grpc_server.h"
#include "server/api/calls/health.h"
#include "server/api/client_memory/client_memory.h"
#include "server/api/forward/switchyard_service.h"
#include "server/api/kserve/control/kserve_models.h"
#include "server/api/kserve/kserve_service.h"
#include "server/config/flags.h"
#include "server/front/front.h"
#include "server/front/metrics_page.h"

namespace switchyard {
namespace {

// The signals that the front handles, on main's thread.
class Signals {
 public:
  // Call before any thread starts.
  explicit Signals(const Inherited& inherited)
      : inherited_(inherited), set_(KeepSignalsForThisThread({SIGTERM, SIGINT, SIGHUP, SIGUSR1})) {
    EndAtOnceOn(SIGQUIT);
  }

  // Waits up to `timeout_ms` for a signal, and handles it. Returns whether it asks the server to stop.
  bool StopRequested(Front& front, int timeout_ms) const {
    const timespec timeout = {timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000L};
    switch (sigtimedwait(&set_, nullptr, &timeout)) {
      case SIGTERM:
      case SIGINT:
        return true;
      case SIGHUP:
        if (inherited_.HangupMeansEnd()) return true;
        front.ReopenFiles();
        return false;
      case SIGUSR1:
        front.LogState();
        return false;
      default:
        return false;
    }
  }

 private:
  const Inherited inherited_;
  const sigset_t set_;
};

// Unavailable, with the reason, when a new request would not be served now, or not from a caller who has yet to
// connect.
absl::Status CheckReady(const Front& front, PortServer& clients) {
  if (!front.ready()) return absl::UnavailableError(absl::StrCat("the server is ", front.state()));
  if (!clients.accepting()) return absl::UnavailableError("the gRPC port has no room for another connection");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(const Front& front, PortServer& clients,
                                                      const MetricsPage& metrics) {
  const ServerOptions& options = front.options();
  return HttpServer::Start(
      {options.host, options.http_port}, [&metrics] { return metrics.Collect(); },
      [&front, &clients] { return CheckReady(front, clients); });
}

// How often readiness is checked for clients that watch the health service.
constexpr int kHealthIntervalMs = 100;

// Waits for a stop signal, then drains. Updates the health service meanwhile.
void ServeUntilStopped(Front& front, PortServer& clients, HealthReporter& health, const Signals& signals) {
  do {
    health.Update(CheckReady(front, clients).ok(), front.models()->layers());
  } while (!signals.StopRequested(front, kHealthIntervalMs));
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

// Serves also when nobody reads the line.
void SayReady(const std::string& line) {
  constexpr std::chrono::seconds kPatience(1);
  if (WriteWithin(STDOUT_FILENO, line, kPatience) != WriteOutcome::kWritten) {
    spdlog::warn("stdout takes no READY line; serving all the same");
  }
}

absl::Status Serve(const ServerOptions& options, const Signals& signals) {
  SY_RETURN_IF_ERROR(CheckConfig(options));
  if (options.check_config) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(const auto access, AccessControl::Open(options));
  SY_ASSIGN_OR_RETURN(const auto front, Front::Create(options));
  const KserveModels models([&front] { return front->models(); });
  const std::unique_ptr<grpc::Service> native = MakeSwitchyardService(front.get());
  const std::unique_ptr<ClientMemory> client_memory = CreateClientMemory(options);
  const std::unique_ptr<grpc::Service> kserve =
      MakeKserveService(front.get(), &models, access.get(), client_memory.get());
  SY_ASSIGN_OR_RETURN(const auto server, StartGrpcServer(options, *access, {native.get(), kserve.get()}));
  const MetricsPage metrics(front.get());
  SY_ASSIGN_OR_RETURN(const auto http, StartHttp(*front, *server, metrics));
  HealthReporter health(&server->grpc(), {kSwitchyardServiceName, kKserveServiceName});
  health.Update(false, front->models()->layers());
  SY_RETURN_IF_ERROR(front->StartWorkers());
  const absl::Status serving = front->WaitUntilServing([&] { return signals.StopRequested(*front, 0); });
  if (serving.ok()) {
    SayReady(absl::StrCat("READY grpc=", JoinHostPort(options.host, server->port()),
                          " http=", JoinHostPort(options.host, http->port()), " workers=", front->num_ranks(), "\n"));
    ServeUntilStopped(*front, *server, health, signals);
  }
  front->repository().Stop();  // ends the changes that RPCs wait for
  server->StopAccepting();
  EndConnections(server->port());
  server->Shutdown(absl::Seconds(1));
  return absl::IsCancelled(serving) ? absl::OkStatus() : serving;
}

// The threads of a front that serves: gRPC's, and those of docs/architecture.md.
constexpr int kThreadsAtLeast = 32;

absl::Status RunServer(const ServerOptions& options, const Inherited& inherited) {
  StopLookingForDeadlocks();
  SY_RETURN_IF_ERROR(SetUpLogging({options.log_level, options.log_format, "front"}));
  const Signals signals(inherited);
  SY_RETURN_IF_ERROR(CheckThreads(kThreadsAtLeast));
  TakeOverLibraryLogs();
  return Serve(options, signals);
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const switchyard::Inherited inherited = switchyard::PrepareProcess(switchyard::ProgramKind::kService);
  switchyard::NameLimitsAtTheEnd("switchyard_server");
  switchyard::ServerOptions options;
  if (const std::optional<int> exit_code = switchyard::ParseFlags(argc, argv, &options)) return *exit_code;
  const absl::Status status = switchyard::RunServer(options, inherited);
  if (status.ok()) return 0;
  switchyard::WriteToLog(absl::StrCat("switchyard_server: ", status.message(), "\n"));
  return 1;
}
