// Limits on what callers can make a front hold: half-open connections, large messages, large headers.
#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <fstream>
#include <map>

#include "absl/strings/numbers.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "proto/switchyard.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr char kModel[] =
    "--model=m=synthetic:dim=256,hidden=64,experts=4,topk=2,act=silu,glu=1,bias=0,dtype=fp32,layers=1";
constexpr int64_t kDim = 256;

absl::StatusOr<std::unique_ptr<ServerProcess>> StartFront(std::vector<std::string> flags) {
  flags.insert(flags.begin(), {kModel, "--local_workers=1"});
  return ServerProcess::Start(flags);
}

// A connection without gRPC on this side, after sending `bytes`.
UniqueFd ConnectRaw(const std::string& address, absl::string_view bytes) {
  const size_t colon = address.rfind(':');
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(colon + 1), &port));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // Makes a test fail, rather than hang, when the server never closes.
  const timeval patience = {20, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  EXPECT_EQ(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  return fd;
}

// Reads what the server sends until it closes the connection; false when it does not close it.
bool WaitForClose(const UniqueFd& fd) {
  std::array<char, 4096> bytes;
  while (true) {
    const ssize_t count = recv(fd.get(), bytes.data(), bytes.size(), 0);
    if (count == 0 || (count < 0 && errno == ECONNRESET)) return true;
    if (count < 0) return false;
  }
}

absl::Status ForwardOnce(Client* client) {
  const HostMatrix rows = HostMatrix::Allocate(DType::kF32, 1, kDim);
  return client->Forward({.model = "m", .layer = "0", .rows = rows.view()}).status();
}

// The most memory that a process has held since its start or ResetPeak, in bytes.
int64_t PeakMemory(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::atoll(line.c_str() + 6) * 1024;
  }
  return 0;
}

// Restarts the measurement of PeakMemory.
void ResetPeak(pid_t pid) { std::ofstream(absl::StrCat("/proc/", pid, "/clear_refs")) << "5"; }

// Repeats one slice, so that even a huge message takes little memory here.
grpc::ByteBuffer MessageOf(int64_t num_bytes) {
  const grpc::Slice slice(std::string(kMiB, '\0'));
  const std::vector<grpc::Slice> slices(num_bytes / kMiB, slice);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

// Makes calls with messages of zeros, all at once. Returns how many ended with each code.
std::map<grpc::StatusCode, int> SendAtOnce(const std::string& address, int num_calls, int64_t num_bytes) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  const auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  struct Call {
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    grpc::Status status;
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
  };
  std::vector<Call> calls(num_calls);
  const grpc::ByteBuffer message = MessageOf(num_bytes);
  for (Call& call : calls) {
    call.context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    call.reader = stub.PrepareUnaryCall(&call.context, "/switchyard.v1.Switchyard/Forward", message, &queue);
    call.reader->StartCall();
    call.reader->Finish(&call.response, &call.status, &call);
  }
  std::map<grpc::StatusCode, int> counts;
  void* tag = nullptr;
  bool ok = false;
  for (int i = 0; i < num_calls && queue.Next(&tag, &ok); ++i) ++counts[static_cast<Call*>(tag)->status.error_code()];
  return counts;
}

TEST(Limits, HalfOpenConnectionsAreClosedAndHarmNobody) {
  const auto server = StartFront({"--handshake_timeout_ms=1000"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  ASSERT_TRUE(ForwardOnce(client.get()).ok());
  std::vector<UniqueFd> connections;
  for (int i = 0; i < 70; ++i) {
    for (const char* bytes : {"", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}) {
      connections.push_back(ConnectRaw((*server)->grpc_address(), bytes));
    }
    ASSERT_TRUE(ForwardOnce(client.get()).ok());
  }
  for (const UniqueFd& connection : connections) ASSERT_TRUE(WaitForClose(connection));
  EXPECT_TRUE(ForwardOnce(client.get()).ok());
}

// The shortest beginning of an HTTP/2 connection: the preface, and a SETTINGS frame without settings.
constexpr absl::string_view kGreeting("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);

TEST(Limits, ConnectionsThatAreIdleOrOldAreLeftWithoutHarm) {
  const auto server = StartFront({"--max_connection_idle_ms=300", "--max_connection_age_ms=300"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(WaitForClose(ConnectRaw((*server)->grpc_address(), kGreeting)));
  const auto client = (*server)->Connect();
  for (const SteadyTime begin = Clock::Real().Now(); MicrosBetween(begin, Clock::Real().Now()) < 1'500'000;) {
    ASSERT_TRUE(ForwardOnce(client.get()).ok());
  }
}

TEST(Limits, AClientThatAnswersNoPingIsGivenUp) {
  const auto server = StartFront({"--keepalive_time_ms=1000", "--keepalive_timeout_ms=500"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(WaitForClose(ConnectRaw((*server)->grpc_address(), kGreeting)));
}

// gRPC checks a message's size only when all of it has come. So the quota has to keep memory from growing.
TEST(Limits, AMessageOfAGibibyteIsRefusedWithoutBeingHeld) {
  const auto server = StartFront({absl::StrCat("--max_request_bytes=", 8 * kMiB), "--grpc_memory_bytes=16Mi"});
  ASSERT_TRUE(server.ok()) << server.status();
  const pid_t pid = (*server)->process().pid();
  ResetPeak(pid);
  const int64_t before = PeakMemory(pid);
  const auto counts = SendAtOnce((*server)->grpc_address(), 1, 1024 * kMiB);
  EXPECT_EQ(counts, (std::map<grpc::StatusCode, int>{{grpc::StatusCode::RESOURCE_EXHAUSTED, 1}}));
  EXPECT_LT(PeakMemory(pid) - before, 64 * kMiB);
  EXPECT_TRUE(ForwardOnce((*server)->Connect().get()).ok());
}

TEST(Limits, ManyLargeMessagesAtOnceStayNearTheirQuota) {
  constexpr int64_t kQuota = 128 * kMiB;
  const auto server = StartFront({absl::StrCat("--grpc_memory_bytes=", kQuota)});
  ASSERT_TRUE(server.ok()) << server.status();
  const pid_t pid = (*server)->process().pid();
  ResetPeak(pid);
  const int64_t before = PeakMemory(pid);
  // Sends 2 GiB. The messages that get through are no requests.
  const auto counts = SendAtOnce((*server)->grpc_address(), 64, 32 * kMiB);
  for (const auto& [code, count] : counts) {
    EXPECT_TRUE(code == grpc::StatusCode::RESOURCE_EXHAUSTED || code == grpc::StatusCode::INVALID_ARGUMENT) << code;
  }
  const int64_t grown = PeakMemory(pid) - before;
  std::printf("grew by %ld MiB with a quota of %ld MiB\n", grown / kMiB, kQuota / kMiB);
  EXPECT_LT(grown, 2 * kQuota + 64 * kMiB);
  EXPECT_TRUE(ForwardOnce((*server)->Connect().get()).ok());
}

TEST(Limits, LargeHeadersAreRefused) {
  const auto server = StartFront({"--max_metadata_bytes=2048"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = grpc::CreateChannel((*server)->grpc_address(), grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  context.AddMetadata("x-large", std::string(8192, 'x'));
  v1::ListModelsResponse response;
  const grpc::Status status = v1::Switchyard::NewStub(channel)->ListModels(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(Limits, CompressedRequestsAreRefusedWhereTheyAreNotWanted) {
  for (const bool wanted : {true, false}) {
    const auto server = StartFront({wanted ? "--compression=on" : "--compression=off"});
    ASSERT_TRUE(server.ok()) << server.status();
    const auto channel = grpc::CreateChannel((*server)->grpc_address(), grpc::InsecureChannelCredentials());
    grpc::ClientContext context;
    context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    v1::ForwardRequest request;
    request.set_model(std::string(1000, 'm'));  // long enough to be worth compressing
    v1::ForwardResponse response;
    const grpc::Status status = v1::Switchyard::NewStub(channel)->Forward(&context, request, &response);
    EXPECT_EQ(status.error_code(), wanted ? grpc::StatusCode::NOT_FOUND : grpc::StatusCode::UNIMPLEMENTED)
        << status.error_message();
    EXPECT_TRUE(ForwardOnce((*server)->Connect().get()).ok());
  }
}

}  // namespace
}  // namespace switchyard
