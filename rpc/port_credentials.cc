#include "rpc/port_credentials.h"

#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/log.h>

#include <string>
#include <utility>

namespace switchyard {
namespace {

// Owned by gRPC's credentials, which may outlive the object that made them.
struct State {
  std::unique_ptr<TlsReloader> tls;
  CallCheckFn check;
};

// gRPC calls this when it makes its credentials and whenever a client connects.
grpc_ssl_certificate_config_reload_status FetchCertificates(void* reloader,
                                                            grpc_ssl_server_certificate_config** config) {
  const auto texts = static_cast<TlsReloader*>(reloader)->TakeChange();
  if (!texts.has_value()) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  const grpc_ssl_pem_key_cert_pair pair = {texts->key.c_str(), texts->cert.c_str()};
  // gRPC requires roots even when clients need no certificate, and does not use them then.
  const std::string& roots = texts->ca.empty() ? texts->cert : texts->ca;
  *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

grpc_server_credentials* MakeTransport(TlsReloader* tls) {
  if (tls == nullptr) return grpc_insecure_server_credentials_create();
  const auto clients = tls->verifies_clients() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
  return grpc_ssl_server_credentials_create_with_options(
      grpc_ssl_server_credentials_create_options_using_config_fetcher(clients, FetchCertificates, tls));
}

absl::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

void CheckCall(void* state, grpc_auth_context*, const grpc_metadata* metadata, size_t num_metadata,
               grpc_process_auth_metadata_done_cb done, void* call) {
  absl::string_view path, authorization;
  for (const grpc_metadata& entry : absl::MakeSpan(metadata, num_metadata)) {
    if (View(entry.key) == ":path") path = View(entry.value);
    if (View(entry.key) == "authorization") authorization = View(entry.value);
  }
  const absl::Status status = static_cast<State*>(state)->check(path, authorization);
  done(call, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.code()),
       status.ok() ? nullptr : std::string(status.message()).c_str());
}

void DeleteState(void* state) { delete static_cast<State*>(state); }

class PortCredentials final : public grpc::ServerCredentials {
 public:
  explicit PortCredentials(State* state) : credentials_(MakeTransport(state->tls.get())) {
    grpc_server_credentials_set_auth_metadata_processor(
        credentials_, {state->check == nullptr ? nullptr : CheckCall, DeleteState, state});
  }
  ~PortCredentials() override { grpc_server_credentials_release(credentials_); }

  // Not supported, because CallCheckFn checks the calls.
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override { GPR_ASSERT(false); }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* const credentials_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakePortCredentials(std::unique_ptr<TlsReloader> tls, CallCheckFn check) {
  return std::make_shared<PortCredentials>(new State{std::move(tls), std::move(check)});
}

}  // namespace switchyard
