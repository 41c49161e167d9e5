// Peers that take all of a front's descriptors, on each of its ports.
#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "rpc/deadline.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] =
    "--model=m=synthetic:dim=64,hidden=64,experts=4,topk=2,act=silu,glu=1,bias=0,dtype=fp32,layers=1";
constexpr int64_t kDim = 64;
constexpr std::chrono::seconds kPatience(30);

absl::Status ForwardOnce(Client* client) {
  const HostMatrix rows = HostMatrix::Allocate(DType::kF32, 1, kDim);
  return client->Forward({.model = "m", .layer = "0", .rows = rows.view(), .timeout = absl::Seconds(20)}).status();
}

// Repeats until `condition` holds; false when it does not in time.
bool Await(const std::function<bool()>& condition) {
  const SteadyTime end = Clock::Real().Now() + kPatience;
  while (!condition()) {
    if (Clock::Real().Now() >= end) return false;
    poll(nullptr, 0, 20);
  }
  return true;
}

UniqueFd ConnectSilently(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(colon + 1), &port));
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  return fd;
}

std::vector<UniqueFd> ConnectSilently(const std::string& address, int count) {
  std::vector<UniqueFd> connections;
  while (static_cast<int>(connections.size()) < count) connections.push_back(ConnectSilently(address));
  return connections;
}

int64_t NumDescriptors(pid_t pid) {
  std::error_code ignored;
  const std::filesystem::directory_iterator entries(absl::StrCat("/proc/", pid, "/fd"), ignored);
  return std::distance(begin(entries), end(entries));
}

// Leaves the process room for `more` descriptors.
int64_t LimitDescriptors(pid_t pid, int more) {
  const auto limit = static_cast<rlim_t>(NumDescriptors(pid) + more);
  const rlimit both = {limit, limit};
  EXPECT_EQ(prlimit(pid, RLIMIT_NOFILE, &both, nullptr), 0);
  return static_cast<int64_t>(limit);
}

// The value of a metric with these labels; -1 when the page has none.
double Metric(const ServerProcess& server, const std::string& name) {
  for (const absl::string_view line : absl::StrSplit(server.Get("/metrics"), '\n')) {
    double value = 0;
    if (line.size() > name.size() && line.substr(0, name.size()) == absl::string_view(name) &&
        absl::SimpleAtod(line.substr(name.size() + 1), &value)) {
      return value;
    }
  }
  return -1;
}

// Whether grpc.health.v1 says over this channel that the server serves.
bool IsHealthy(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(DeadlineAfter(absl::Seconds(30)));
  grpc::CompletionQueue queue;
  const grpc::Slice empty;
  const auto call =
      stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::ByteBuffer(&empty, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  EXPECT_TRUE(status.ok()) << status.error_message();
  grpc::Slice bytes;
  return answer.DumpToSingleSlice(&bytes).ok() && bytes.size() == 2 && bytes.begin()[1] == 1;  // status: SERVING
}

class Descriptors : public testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start({kModel, "--local_workers=1", "--handshake_timeout_ms=600000"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::unique_ptr<ServerProcess> server_;
};

TEST_F(Descriptors, SilentClientsTakeThemAllAndTheFrontRecovers) {
  const auto honest = server_->Connect();
  const auto health = grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials());
  ASSERT_EQ(ForwardOnce(honest.get()), absl::OkStatus());
  ASSERT_TRUE(IsHealthy(health));
  const int64_t limit = LimitDescriptors(server_->process().pid(), 200);
  std::vector<UniqueFd> silent = ConnectSilently(server_->grpc_address(), 400);
  EXPECT_TRUE(Await([&] { return Metric(*server_, "switchyard_connections_refused_total{port=\"grpc\"}") > 100; }));
  EXPECT_LT(NumDescriptors(server_->process().pid()), limit - 10) << "some are kept in reserve";
  EXPECT_GT(Metric(*server_, "switchyard_connections{port=\"grpc\"}"), 100);
  // An honest caller's connection works, and readiness is what a new one would meet.
  for (int i = 0; i < 10; ++i) EXPECT_EQ(ForwardOnce(honest.get()), absl::OkStatus());
  EXPECT_EQ(server_->Get("/readyz"), "");
  EXPECT_EQ(server_->Get("/livez"), "live\n");
  EXPECT_TRUE(Await([&] { return !IsHealthy(health); }));
  silent.clear();
  EXPECT_TRUE(Await([&] { return server_->Get("/readyz") == "ready\n"; }));
  EXPECT_TRUE(Await([&] { return IsHealthy(health); }));
  EXPECT_EQ(ForwardOnce(server_->Connect().get()), absl::OkStatus()) << "a new connection";
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(Descriptors, AnAcceptThatFailsLeavesNoPortDeaf) {
  const pid_t pid = server_->process().pid();
  rlimit before;
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, nullptr, &before), 0);
  const rlimit none = {static_cast<rlim_t>(0), before.rlim_max};
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &none, nullptr), 0);
  const UniqueFd grpc = ConnectSilently(server_->grpc_address()), http = ConnectSilently(server_->http_address());
  poll(nullptr, 0, 300);  // for the accepts to fail; when they come later, the test is only weaker
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &before, nullptr), 0);
  EXPECT_TRUE(Await([&] { return server_->Get("/readyz") == "ready\n"; }));
  EXPECT_EQ(ForwardOnce(server_->Connect().get()), absl::OkStatus());
}

TEST_F(Descriptors, SilentPeersOfTheHttpPortKeepNoProbeOut) {
  LimitDescriptors(server_->process().pid(), 100);
  const std::vector<UniqueFd> silent = ConnectSilently(server_->http_address(), 300);
  const SteadyTime begin = Clock::Real().Now();
  EXPECT_EQ(server_->Get("/livez"), "live\n");
  EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), 4'000'000) << "it waited for the silent connections to end";
  EXPECT_GT(Metric(*server_, "switchyard_connections{port=\"http\"}"), 0);
}

// The address of the worker port, from the log.
std::string WorkerAddress(const ChildProcess& front) {
  constexpr std::string_view kBefore = "workers on ";
  std::string address;
  EXPECT_TRUE(Await([&] {
    const std::string log = front.Log();
    const size_t begin = log.find(kBefore);
    if (begin == std::string::npos || log.find('\n', begin) == std::string::npos) return false;
    address = log.substr(begin + kBefore.size(), log.find('\n', begin) - begin - kBefore.size());
    return true;
  }));
  return address;
}

TEST(WorkerPort, SilentStrangersKeepWorkersOutOnlyWhileTheyAreThere) {
  auto process = ChildProcess::Start(kServerProgram,
                                     {"--port=0", "--http_port=0", kModel, "--await_workers=1", "--worker_port=0"});
  ASSERT_TRUE(process.ok()) << process.status();
  const std::string address = WorkerAddress(**process);
  LimitDescriptors((*process)->pid(), 50);
  std::vector<UniqueFd> silent = ConnectSilently(address, 300);
  EXPECT_TRUE(
      Await([&] { return (*process)->Log().find("the worker port refuses connections") != std::string::npos; }));
  silent.clear();
  const auto worker =
      ChildProcess::Start("worker/switchyard_worker", {absl::StrCat("--front=", address), "--device=cpu"});
  ASSERT_TRUE(worker.ok()) << worker.status();
  const auto server = ServerProcess::WaitUntilReady(*std::move(process));
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(ForwardOnce((*server)->Connect().get()), absl::OkStatus());
}

}  // namespace
}  // namespace switchyard
