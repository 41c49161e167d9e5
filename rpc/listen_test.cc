#include "rpc/listen.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

#include <filesystem>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/time/time.h"
#include "rpc/deadline.h"

namespace switchyard {
namespace {

// Answers every call with an empty message.
class Service final : public grpc::CallbackGenericService {
  class Reactor final : public grpc::ServerGenericBidiReactor {
   public:
    Reactor() { StartRead(&request_); }
    void OnReadDone(bool) override { StartWriteAndFinish(&request_, {}, grpc::Status::OK); }
    void OnDone() override { delete this; }

   private:
    grpc::ByteBuffer request_;
  };
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override { return new Reactor; }
};

class PortServerTest : public testing::Test {
 protected:
  PortServerTest() { getrlimit(RLIMIT_NOFILE, &before_); }
  ~PortServerTest() override { setrlimit(RLIMIT_NOFILE, &before_); }

  void Start(const std::string& host, int max_connections = 1000) {
    server_.reset();
    service_ = std::make_unique<Service>();
    grpc::ServerBuilder builder;
    builder.RegisterCallbackGenericService(service_.get());
    auto server = PortServer::Start(builder, grpc::InsecureServerCredentials(),
                                    {.host = host, .flag = "--port", .max_connections = max_connections});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // A call over a connection of its own.
  grpc::StatusCode CallOnce(const std::string& host = "127.0.0.1") {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    grpc::GenericStub stub(grpc::CreateCustomChannel(absl::StrCat(host, ":", server_->port()),
                                                     grpc::InsecureChannelCredentials(), arguments));
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(DeadlineAfter(absl::Seconds(20)));
    grpc::CompletionQueue queue;
    const grpc::Slice nothing;
    const auto call = stub.PrepareUnaryCall(&context, "/any/Method", grpc::ByteBuffer(&nothing, 1), &queue);
    call->StartCall();
    grpc::ByteBuffer answer;
    grpc::Status status;
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    return status.error_code();
  }

  UniqueFd ConnectRaw() const {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(server_->port()));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
    return fd;
  }

  // Whether the server ends the connection within some seconds.
  static bool IsEnded(const UniqueFd& connection) {
    pollfd polled = {connection.get(), POLLIN, 0};
    char byte;
    return poll(&polled, 1, 20'000) == 1 && recv(connection.get(), &byte, 1, 0) <= 0;
  }

  // The listening sockets of this process's port.
  std::vector<int> Listeners() const {
    std::vector<int> found;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      int fd = -1;
      int listens = 0;
      socklen_t size = sizeof(listens);
      if (absl::SimpleAtoi(entry.path().filename().string(), &fd) &&
          getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens != 0) {
        found.push_back(fd);
      }
    }
    return found;
  }

  rlimit before_ = {};
  std::unique_ptr<Service> service_;
  std::unique_ptr<PortServer> server_;
};

TEST_F(PortServerTest, ServesOnNamesAndWildcards) {
  for (const std::string host : {"127.0.0.1", "localhost", "0.0.0.0"}) {
    Start(host);
    EXPECT_EQ(CallOnce(), grpc::StatusCode::OK) << host;
    EXPECT_TRUE(server_->accepting());
  }
}

TEST_F(PortServerTest, APortInUseIsRefused) {
  Start("127.0.0.1");
  grpc::ServerBuilder builder;
  const auto second = PortServer::Start(builder, grpc::InsecureServerCredentials(),
                                        {.host = "127.0.0.1", .port = server_->port(), .flag = "--port"});
  EXPECT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_EQ(second.status().message().rfind(absl::StrCat("--port: cannot listen on 127.0.0.1:", server_->port()), 0), 0)
      << second.status();
}

TEST_F(PortServerTest, AListenerThatFailsIsOpenedAgain) {
  Start("127.0.0.1");
  const std::vector<int> listeners = Listeners();
  ASSERT_EQ(listeners.size(), 1);
  ASSERT_EQ(shutdown(listeners[0], SHUT_RDWR), 0);
  EXPECT_EQ(CallOnce(), grpc::StatusCode::OK) << "the client connects again until the deadline";
  EXPECT_TRUE(server_->accepting());
}

TEST_F(PortServerTest, ConnectionsAreBoundedAndComeBack) {
  Start("127.0.0.1", /*max_connections=*/4);
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 4; ++i) silent.push_back(ConnectRaw());
  EXPECT_TRUE(IsEnded(ConnectRaw())) << "one too many";
  EXPECT_FALSE(server_->accepting());
  silent.clear();
  EXPECT_EQ(CallOnce(), grpc::StatusCode::OK);
}

TEST_F(PortServerTest, AnAcceptThatFailsForWantOfDescriptorsIsTriedAgain) {
  Start("127.0.0.1");
  ASSERT_EQ(CallOnce(), grpc::StatusCode::OK);
  const UniqueFd waiting(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit none = before_;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(server_->port()));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(waiting.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  EXPECT_FALSE(server_->accepting());
  poll(nullptr, 0, 20);  // for the accept to fail; when it comes later, the test is only weaker
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before_), 0);
  EXPECT_EQ(CallOnce(), grpc::StatusCode::OK);
}

}  // namespace
}  // namespace switchyard
