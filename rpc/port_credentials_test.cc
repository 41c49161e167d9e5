#include "rpc/port_credentials.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "proto/switchyard.grpc.pb.h"

namespace switchyard {
namespace {

// A server that answers every call with UNIMPLEMENTED, as gRPC's generated skeleton does. That answer shows that the
// credentials let the call through.
class Port {
 public:
  Port(std::unique_ptr<TlsReloader> tls, CallCheckFn check) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", MakePortCredentials(std::move(tls), std::move(check)), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~Port() { server_->Shutdown(std::chrono::system_clock::now()); }

  std::shared_ptr<grpc::Channel> Connect(const std::shared_ptr<grpc::ChannelCredentials>& credentials) const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port_), credentials, arguments);
  }

 private:
  v1::Switchyard::Service service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

grpc::Status ListModels(const std::shared_ptr<grpc::Channel>& channel, const std::string& authorization = "") {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  v1::ListModelsResponse response;
  return v1::Switchyard::NewStub(channel)->ListModels(&context, {}, &response);
}

constexpr grpc::StatusCode kServed = grpc::StatusCode::UNIMPLEMENTED;

TEST(PortCredentials, WithoutTlsAndCheckEveryCallPasses) {
  const Port port(nullptr, nullptr);
  EXPECT_EQ(ListModels(port.Connect(grpc::InsecureChannelCredentials())).error_code(), kServed);
}

TEST(PortCredentials, CallsAreCheckedOnAPortWithoutTls) {
  const Port port(nullptr, [](absl::string_view path, absl::string_view authorization) {
    if (authorization == "secret") return absl::OkStatus();
    return absl::PermissionDeniedError(absl::StrCat("no ", path));
  });
  const auto channel = port.Connect(grpc::InsecureChannelCredentials());
  EXPECT_EQ(ListModels(channel, "secret").error_code(), kServed);
  const grpc::Status refused = ListModels(channel);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(refused.error_message(), "no /switchyard.v1.Switchyard/ListModels");
}

TEST(PortCredentials, MethodsThatDoNotExistAreCheckedToo) {
  const Port port(nullptr, [](absl::string_view, absl::string_view) { return absl::PermissionDeniedError("no"); });
  const auto channel = port.Connect(grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::ByteBuffer request, response;
  grpc::Status status;
  grpc::Slice empty;
  request = grpc::ByteBuffer(&empty, 1);
  auto call = stub.PrepareUnaryCall(&context, "/no.such.Service/Method", request, &queue);
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

class TlsPort : public ::testing::Test {
 protected:
  static std::string Path(const std::string& name) { return absl::StrCat(::testing::TempDir(), "/", name); }

  // Makes a self-signed certificate for 127.0.0.1 and its key, replaces the server's files with them, and returns the
  // certificate.
  static std::string NewCertificate() {
    const std::string command = absl::StrCat(
        "cd ", ::testing::TempDir(),
        " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test "
        "-addext subjectAltName=IP:127.0.0.1 -keyout new.key -out new.pem 2>/dev/null "
        "&& mv new.key live.key && mv new.pem live.pem");
    EXPECT_EQ(std::system(command.c_str()), 0);
    return ReadFlagFile({"--f", Path("live.pem")}).value();
  }

  static std::shared_ptr<grpc::ChannelCredentials> Trusting(const std::string& roots) {
    return grpc::SslCredentials({.pem_root_certs = roots});
  }

  static TlsFiles Files() { return {{"--tls_cert", Path("live.pem")}, {"--tls_key", Path("live.key")}, {}}; }
};

TEST_F(TlsPort, NewConnectionsGetTheNewCertificateAndOldOnesGoOn) {
  const std::string first = NewCertificate();
  const Port port(TlsReloader::Open(Files()).value(), nullptr);
  const auto old_channel = port.Connect(Trusting(first));
  EXPECT_EQ(ListModels(old_channel).error_code(), kServed);

  const std::string second = NewCertificate();
  EXPECT_EQ(ListModels(port.Connect(Trusting(second))).error_code(), kServed);
  EXPECT_EQ(ListModels(port.Connect(Trusting(first))).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ListModels(old_channel).error_code(), kServed) << "its connection was made before";
}

TEST_F(TlsPort, NoStrangerIsLetIn) {
  // The server has and trusts the certificate "friend". "live" is a newer one that it does not trust.
  const std::string roots = NewCertificate();
  std::filesystem::copy_file(Path("live.pem"), Path("friend.pem"), std::filesystem::copy_options::overwrite_existing);
  std::filesystem::copy_file(Path("live.key"), Path("friend.key"), std::filesystem::copy_options::overwrite_existing);
  NewCertificate();
  TlsFiles files = {{"--tls_cert", Path("friend.pem")}, {"--tls_key", Path("friend.key")}, {}};
  files.ca = {"--tls_client_ca", Path("friend.pem")};
  const Port port(TlsReloader::Open(files).value(), nullptr);
  const auto with_pair = [&](const std::string& name) {
    return grpc::SslCredentials({.pem_root_certs = roots,
                                 .pem_private_key = ReadFlagFile({"--f", Path(name + ".key")}).value(),
                                 .pem_cert_chain = ReadFlagFile({"--f", Path(name + ".pem")}).value()});
  };
  EXPECT_EQ(ListModels(port.Connect(with_pair("friend"))).error_code(), kServed);
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(ListModels(port.Connect(with_pair("live"))).error_code(), grpc::StatusCode::UNAVAILABLE);
    ASSERT_EQ(ListModels(port.Connect(Trusting(roots))).error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

TEST_F(TlsPort, CallsWithoutTlsAreRefused) {
  NewCertificate();
  const Port port(TlsReloader::Open(Files()).value(), nullptr);
  EXPECT_EQ(ListModels(port.Connect(grpc::InsecureChannelCredentials())).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsPort, CallsAreCheckedOverTls) {
  const std::string roots = NewCertificate();
  const Port port(TlsReloader::Open(Files()).value(), [](absl::string_view, absl::string_view authorization) {
    return authorization == "secret" ? absl::OkStatus() : absl::UnauthenticatedError("no");
  });
  const auto channel = port.Connect(Trusting(roots));
  EXPECT_EQ(ListModels(channel, "secret").error_code(), kServed);
  EXPECT_EQ(ListModels(channel).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace switchyard
