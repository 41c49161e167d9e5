#include "server/api/calls/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>

#include "base/logging/logging.h"
#include "base/process/container_limits.h"
#include "rpc/loopback.h"
#include "rpc/port_credentials.h"
#include "rpc/wire_options.h"
#include "server/api/calls/health.h"

namespace switchyard {
namespace {

// Room for a request's fields other than its rows.
constexpr int64_t kEnvelopeBytes = 64 << 10;

// The shortest interval at which clients may ping a quiet connection, as they do to keep it open through the network
// devices on the way. The server closes connections that ping more often.
constexpr int kMinPingIntervalMs = 10'000;

constexpr int kNever = INT_MAX;

int OrNever(int ms) { return ms > 0 ? ms : kNever; }

// A peer that is gone is noticed as fast by what it does not acknowledge as by the pings that it does not answer.
int UnacknowledgedTimeoutMs(const ServerOptions& options) {
  return options.keepalive_time_ms > 0 ? options.keepalive_timeout_ms : 0;
}

void LimitConnections(const ServerOptions& options, grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, OrNever(options.keepalive_time_ms));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.keepalive_timeout_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // 0: as many as keepalive sends
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, OrNever(options.max_connection_idle_ms));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, OrNever(options.max_connection_age_ms));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, OrNever(options.max_connection_age_grace_ms));
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, options.handshake_timeout_ms);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
}

void LimitMessages(const ServerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(options.max_request_bytes + kEnvelopeBytes));
  builder->SetMaxSendMessageSize(-1);
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    builder->SetCompressionAlgorithmSupportStatus(algorithm, options.compression);
  }
  grpc::ResourceQuota quota("clients");
  quota.Resize(static_cast<size_t>(options.grpc_memory(MemoryLimit())));
  builder->SetResourceQuota(quota);
}

void WarnIfOpen(const ServerOptions& options) {
  if (IsLoopback(options.host) || !options.tls_client_ca.empty() || !options.auth_token_file.empty()) return;
  spdlog::warn(
      "--host={} is reachable from other hosts, and anyone there may send requests: see --tls_cert, "
      "--tls_client_ca and --auth_token_file",
      options.host);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PortServer>> StartGrpcServer(const ServerOptions& options, const AccessControl& access,
                                                            const std::vector<grpc::Service*>& services) {
  std::unique_ptr<TlsReloader> certificates;
  if (!options.tls_cert.empty()) {
    SY_ASSIGN_OR_RETURN(certificates, TlsReloader::Open(options.client_tls()));
  }
  WarnIfOpen(options);
  HealthReporter::Enable();
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  LimitConnections(options, &builder);
  LimitMessages(options, &builder);
  TuneServer(builder);
  for (grpc::Service* service : services) builder.RegisterService(service);
  return PortServer::Start(builder, MakePortCredentials(std::move(certificates), access.call_check()),
                           {.host = options.host,
                            .port = options.port,
                            .flag = "--port",
                            .kind = PortKind::kClients,
                            .unacknowledged_timeout_ms = UnacknowledgedTimeoutMs(options)});
}

}  // namespace switchyard
