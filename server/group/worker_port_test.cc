// Tests the worker port over real connections; the tests play the workers and the strangers.
#include "server/group/worker_port.h"

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "proto/worker.grpc.pb.h"
#include "server/group/group.h"
#include "server/group/worker_group.h"

namespace switchyard {
namespace {

constexpr char kToken[] = "the-secret-of-the-group";
constexpr size_t kMaxRowBytes = 8 << 20;
using Stream = grpc::ClientReaderWriter<worker::WorkerMessage, worker::FrontMessage>;

worker::WorkerMessage HelloMessage() {
  worker::WorkerMessage message;
  message.mutable_hello()->set_version("1");
  message.mutable_hello()->set_build("b");
  message.mutable_hello()->set_local_index(-1);
  message.mutable_hello()->add_exchanges("tcp");
  return message;
}

// A port for one worker, and a caller's connection to it.
class WorkerPortTest : public testing::Test {
 protected:
  void Listen(const std::string& token, std::chrono::milliseconds hello_timeout = std::chrono::minutes(10)) {
    GroupOptions options;
    options.membership.version = "1";
    options.membership.build = "b";
    group_ =
        *WorkerGroup::Create(LinkLayout::For(1, 64, 4096, 64), {.num_ranks = 1, .num_slots = 1}, options, &metrics_);
    const WorkerPortOptions port = {
        .host = "127.0.0.1", .token = token, .max_row_bytes = kMaxRowBytes, .hello_timeout = hello_timeout};
    port_ = *WorkerPort::Listen(port, &group_->group());
    hub_ = worker::WorkerHub::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port_->port()), grpc::InsecureChannelCredentials()));
  }

  std::unique_ptr<Stream> Join(const std::string& authorization = "") {
    context_ = std::make_unique<grpc::ClientContext>();
    if (!authorization.empty()) context_->AddMetadata("authorization", authorization);
    return hub_->Join(context_.get());
  }

  // Joins with `first`, and returns the status that the front ends the call with.
  grpc::Status Refusal(const std::string& authorization, const worker::WorkerMessage& first) {
    const auto stream = Join(authorization);
    stream->Write(first);
    worker::FrontMessage message;
    while (stream->Read(&message)) ADD_FAILURE() << "it was let in";
    return stream->Finish();
  }

  double Refusals(const std::string& reason) {
    for (const auto& family : metrics_.registry().Collect()) {
      if (family.name != "switchyard_worker_refusals_total") continue;
      for (const auto& metric : family.metric) {
        if (metric.label.at(0).value == reason) return metric.counter.value;
      }
    }
    return -1;
  }

  Metrics metrics_;
  std::unique_ptr<WorkerGroup> group_;
  std::unique_ptr<WorkerPort> port_;
  std::unique_ptr<worker::WorkerHub::Stub> hub_;
  std::unique_ptr<grpc::ClientContext> context_;
};

TEST_F(WorkerPortTest, OnlyTheTokenLetsIn) {
  Listen(kToken);
  const std::string wrong_end = "Bearer the-secret-of-the-grouP";
  for (const std::string& authorization :
       {std::string(), std::string("Bearer the-secret"), wrong_end, std::string(kToken)}) {
    const grpc::Status status = Refusal(authorization, HelloMessage());
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << authorization;
    EXPECT_NE(status.error_message().find("--worker_token_file"), std::string::npos) << status.error_message();
  }
  EXPECT_EQ(Refusals("token"), 4);
  const auto stream = Join(absl::StrCat("Bearer ", kToken));
  stream->Write(HelloMessage());
  worker::FrontMessage message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_TRUE(message.has_welcome());
}

TEST_F(WorkerPortTest, WithoutATokenTheSameUserIsLetIn) {
  if (geteuid() == 65534) GTEST_SKIP() << "nobody's processes are not let in";
  Listen("");
  const auto stream = Join();
  stream->Write(HelloMessage());
  worker::FrontMessage message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_TRUE(message.has_welcome());
  EXPECT_EQ(Refusals("user"), 0);
}

// A connection to `port` by another user.
class ForeignConnection {
 public:
  explicit ForeignConnection(int port) {
    can_be_made_ = geteuid() == 0 && seteuid(4242) == 0;
    if (!can_be_made_) return;
    fd_.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(seteuid(0), 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    peer_ = absl::StrCat("ipv4:127.0.0.1:", ntohs(address.sin_port));
  }
  bool can_be_made() const { return can_be_made_; }
  const std::string& peer() const { return peer_; }

 private:
  bool can_be_made_ = false;
  UniqueFd fd_;
  std::string peer_;
};

TEST_F(WorkerPortTest, WithoutATokenAnotherUserIsRefused) {
  Listen("");
  const ForeignConnection foreign(port_->port());
  if (!foreign.can_be_made()) GTEST_SKIP() << "only root, and not in every sandbox, can be another user";
  WorkerAccess access("", /*has_certificates=*/false);
  access.SetPort(port_->port());
  const auto refusal = access.Check("", foreign.peer());
  ASSERT_TRUE(refusal.has_value());
  EXPECT_EQ(refusal->reason, WorkerRefusal::kUser);
  EXPECT_NE(refusal->why.message().find("it is of user 4242"), absl::string_view::npos) << refusal->why;
  EXPECT_NE(refusal->why.message().find("--worker_token_file"), absl::string_view::npos) << refusal->why;
}

TEST(WorkerAccess, CertificatesNeedNoUser) {
  const WorkerAccess certificates("", /*has_certificates=*/true), both(kToken, /*has_certificates=*/true);
  EXPECT_FALSE(certificates.Check("", "ipv4:192.168.1.1:9").has_value());
  EXPECT_EQ(both.Check("", "ipv4:192.168.1.1:9")->reason, WorkerRefusal::kToken);
  EXPECT_EQ(WorkerAccess("", false).Check("", "ipv4:192.168.1.1:9")->reason, WorkerRefusal::kUser);
}

TEST_F(WorkerPortTest, AWorkerWithoutAHelloIsRefused) {
  Listen(kToken, std::chrono::milliseconds(50));
  const auto stream = Join(absl::StrCat("Bearer ", kToken));
  worker::FrontMessage message;
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(Refusals("late"), 1);
}

TEST_F(WorkerPortTest, TheFirstMessageIsASmallHello) {
  Listen(kToken);
  const std::string authorization = absl::StrCat("Bearer ", kToken);
  worker::WorkerMessage message;
  message.mutable_pong()->set_number(1);
  EXPECT_EQ(Refusal(authorization, message).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  message = HelloMessage();
  message.mutable_hello()->set_host(std::string(64 << 10, 'h'));
  const grpc::Status large = Refusal(authorization, message);
  EXPECT_EQ(large.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(large.error_message().find("and a Hello at most 65536"), std::string::npos) << large.error_message();
  EXPECT_EQ(Refusals("first_message"), 2);
  message = HelloMessage();
  message.mutable_hello()->set_version("2");
  EXPECT_EQ(Refusal(authorization, message).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Refusals("hello"), 1);
}

TEST_F(WorkerPortTest, MessagesAfterTheHelloAreReadOnceItIsAccepted) {
  Listen(kToken);
  const auto stream = Join(absl::StrCat("Bearer ", kToken));
  stream->Write(HelloMessage());
  worker::WorkerMessage large;
  large.mutable_step_result()->set_rows(std::string(kMaxRowBytes, 'r'));
  stream->Write(large);
  // Another Hello is no message of a worker that has joined, and harms nothing.
  stream->Write(HelloMessage());
  worker::FrontMessage message;
  for (int pings = 0; pings < 3; pings += message.has_ping()) ASSERT_TRUE(stream->Read(&message));
}

}  // namespace
}  // namespace switchyard
