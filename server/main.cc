// switchyard_server: the front. Flags in, one READY line out, SIGTERM drains.
#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>

#include "moe/base/logging.h"
#include "moe/base/version.h"
#include "rpc/listen.h"
#include "server/flags.h"
#include "server/front.h"
#include "server/http_server.h"
#include "server/rpc/switchyard_service.h"

namespace switchyard {
namespace {

// Room for the other fields of a request beside its rows.
constexpr int64_t kEnvelopeBytes = 64 << 10;

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

// Waits up to `timeout_ms` for a signal to stop.
bool StopRequested(int timeout_ms) {
  const sigset_t signals = StopSignals();
  const timespec timeout = {timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000L};
  return sigtimedwait(&signals, nullptr, &timeout) > 0;
}

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(Front& front) {
  const ServerOptions& options = front.options();
  return HttpServer::Start(
      {options.host, options.http_port}, &front.metrics().registry(),
      [&front] {
        const Admission::Held held = front.held();
        front.metrics().SetQueue(held.rows, held.bytes, held.requests);
      },
      [&front] { return front.ready(); });
}

absl::Status Serve(const ServerOptions& options) {
  SY_ASSIGN_OR_RETURN(const auto front, Front::Create(options));
  SwitchyardService service(front.get());
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_request_bytes + kEnvelopeBytes));
  builder.SetMaxSendMessageSize(-1);
  builder.RegisterService(&service);
  int port = 0;
  SY_ASSIGN_OR_RETURN(const auto server, StartServer(builder, options.host, options.port, "--port", &port));
  SY_ASSIGN_OR_RETURN(const auto http, StartHttp(*front));
  const absl::Status serving = front->WaitUntilServing([] { return StopRequested(0); });
  if (serving.ok()) {
    std::printf("READY grpc=%s:%d http=%s:%d workers=%d\n", options.host.c_str(), port, options.host.c_str(),
                http->port(), front->num_ranks());
    std::fflush(stdout);
    while (!StopRequested(3'600'000)) {
    }
    front->Drain();
  }
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  return absl::IsCancelled(serving) ? absl::OkStatus() : serving;
}

absl::Status RunServer(const ServerOptions& options) {
  SY_RETURN_IF_ERROR(SetUpLogging({options.log_level, options.log_format, "front"}));
  // Before any thread starts, so that all of them leave these signals to the main thread.
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return Serve(options);
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  switchyard::ServerOptions options;
  CLI::App app;
  switchyard::DefineFlags(app, &options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const absl::Status status = switchyard::RunServer(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "switchyard_server: %s\n", std::string(status.message()).c_str());
  return 1;
}
