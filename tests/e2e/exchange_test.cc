// How workers exchange rows: which way is taken, and that strangers on the host cannot disturb it.
#include <dirent.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kModel[] = "tests/testdata/jargon-moe";

std::unique_ptr<ServerProcess> StartServer(std::vector<std::string> flags) {
  flags.insert(flags.end(), {absl::StrCat("--model=m=", kModel), "--compute_dtype=fp32"});
  auto server = ServerProcess::Start(flags);
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

void ExpectRightAnswer(Client& client) {
  const auto input = LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.2.mlp.input"});
  const auto expected = LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.2.mlp.output"});
  ASSERT_TRUE(input.ok() && expected.ok());
  const auto result = client.Forward({.model = "m", .layer = "2", .rows = input->view()});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(Compare(result->rows.view(), expected->view(), {1e-4, 1e-5}).within_tolerance());
}

// The inodes of the sockets that a process has.
std::set<std::string> SocketsOf(int pid) {
  std::set<std::string> inodes;
  const std::string folder = absl::StrCat("/proc/", pid, "/fd");
  DIR* const entries = opendir(folder.c_str());
  if (entries == nullptr) return inodes;
  while (const dirent* entry = readdir(entries)) {
    char target[64] = {};
    if (readlink(absl::StrCat(folder, "/", entry->d_name).c_str(), target, sizeof(target) - 1) <= 0) continue;
    if (absl::StartsWith(target, "socket:[")) inodes.insert(std::string(target + 8, std::strlen(target) - 9));
  }
  closedir(entries);
  return inodes;
}

std::vector<std::vector<std::string>> TableOf(const std::string& path) {
  std::vector<std::vector<std::string>> rows;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    rows.push_back(absl::StrSplit(line, ' ', absl::SkipEmpty()));
  }
  return rows;
}

// The ports that a process listens on, of TCP over IPv4.
std::set<int> ListeningPorts(int pid) {
  const std::set<std::string> sockets = SocketsOf(pid);
  std::set<int> ports;
  for (const auto& row : TableOf("/proc/net/tcp")) {
    if (row.size() > 9 && row[3] == "0A" && sockets.contains(row[9])) {
      ports.insert(static_cast<int>(std::stoul(row[1].substr(row[1].find(':') + 1), nullptr, 16)));
    }
  }
  return ports;
}

// The exchange's Unix sockets that anybody of this network namespace listens on; names without the leading zero.
std::set<std::string> ExchangeSockets(const std::vector<int>& workers) {
  constexpr char kListens[] = "00010000";
  std::set<std::string> own, names;
  for (const int pid : workers) own.merge(SocketsOf(pid));
  for (const auto& row : TableOf("/proc/net/unix")) {
    const bool is_named = row.size() == 8 && absl::StartsWith(row[7], "@switchyard-");
    if (is_named && row[3] == kListens && own.contains(row[6])) names.insert(row[7].substr(1));
  }
  return names;
}

void Disturb(const sockaddr* address, socklen_t num_bytes) {
  const UniqueFd fd(socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (connect(fd.get(), address, num_bytes) != 0 && errno != EINPROGRESS) return;
  const char nonsense[100] = "nonsense";
  send(fd.get(), nonsense, sizeof(nonsense), MSG_NOSIGNAL);
  const linger reset = {1, 0};  // closing resets the connection
  setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
}

// Connects to everything that these workers listen on, writes nonsense and resets the connection, over and over.
class Stranger {
 public:
  explicit Stranger(std::function<std::vector<int>()> workers)
      : thread_([this, workers = std::move(workers)] {
          while (!stop_) Round(workers());
        }) {}
  ~Stranger() {
    stop_ = true;
    thread_.join();
  }
  int64_t num_disturbed() const { return num_disturbed_; }

 private:
  void Round(const std::vector<int>& pids) {
    for (const int pid : pids) {
      for (const int port : ListeningPorts(pid)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        Disturb(reinterpret_cast<const sockaddr*>(&address), sizeof(address));
        ++num_disturbed_;
      }
    }
    for (const std::string& name : ExchangeSockets(pids)) {
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::memcpy(address.sun_path + 1, name.data(), std::min(name.size(), sizeof(address.sun_path) - 1));
      Disturb(reinterpret_cast<const sockaddr*>(&address), offsetof(sockaddr_un, sun_path) + 1 + name.size());
      ++num_disturbed_;
    }
    usleep(200);
  }

  std::atomic<bool> stop_{false};
  std::atomic<int64_t> num_disturbed_{0};
  std::thread thread_;
};

v1::GetStatusResponse WaitUntilServing(Client& client, int64_t after_epoch) {
  const SteadyTime begin = Clock::Real().Now();
  while (MicrosBetween(begin, Clock::Real().Now()) < 30'000'000) {
    const auto status = client.GetStatus();
    if (status.ok() && status->state() == "serving" && status->epoch() > after_epoch) return *status;
    usleep(2000);
  }
  ADD_FAILURE() << "the group does not form";
  return {};
}

class ExchangeTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Exchanges, ExchangeTest, testing::Values("shm", "tcp"),
                         [](const auto& info) { return std::string(info.param); });

// With Gloo, one such connection ended the process whose socket it hit.
TEST_P(ExchangeTest, StrangersAtTheSocketsEndNoWorker) {
  const auto server = StartServer({"--local_workers=2", absl::StrCat("--exchange=", GetParam())});
  ASSERT_NE(server, nullptr);
  const auto client = server->Connect();
  auto status = WaitUntilServing(*client, 0);
  std::atomic<int> first = status.ranks(0).pid(), second = status.ranks(1).pid();
  const Stranger stranger([&] { return std::vector<int>{first, second}; });
  for (int round = 0; round < 5; ++round) {
    ASSERT_EQ(kill(second, SIGKILL), 0);
    status = WaitUntilServing(*client, status.epoch());
    ASSERT_EQ(status.ranks_size(), 2);
    EXPECT_EQ(status.ranks(0).pid(), first) << "the survivor did not survive";
    second = status.ranks(1).pid();
    ExpectRightAnswer(*client);
  }
  EXPECT_TRUE(server->process().HasLogged(absl::StrCat("(exchange ", GetParam(), ")")));
  EXPECT_EQ(server->Stop(), 0);
}

TEST(ExchangeDefaultTest, WorkersOfOneHostListenOnNoPort) {
  const auto server = StartServer({"--local_workers=3"});
  ASSERT_NE(server, nullptr);
  const auto client = server->Connect();
  const auto status = WaitUntilServing(*client, 0);
  std::vector<int> workers;
  for (const auto& rank : status.ranks()) workers.push_back(rank.pid());
  for (const int pid : workers) EXPECT_THAT(ListeningPorts(pid), IsEmpty());
  EXPECT_THAT(ExchangeSockets(workers), IsEmpty());  // nor on Unix sockets, once the group is there
  ExpectRightAnswer(*client);
  EXPECT_TRUE(server->process().HasLogged("(exchange shm)"));
  EXPECT_EQ(server->Stop(), 0);
}

TEST(ExchangeDefaultTest, GlooIsStillThere) {
  const auto server = StartServer({"--local_workers=2", "--exchange=gloo"});
  ASSERT_NE(server, nullptr);
  ExpectRightAnswer(*server->Connect());
  EXPECT_EQ(server->Stop(), 0);
}

TEST(AddressesTest, AWrongExchangeHostEndsTheWorkerWithAReason) {
  const auto worker =
      *ChildProcess::Start("worker/switchyard_worker", {"--front=127.0.0.1:1", "--device=cpu", "--exchange_host=eth9"});
  EXPECT_EQ(worker->Wait(), 2);
  EXPECT_THAT(worker->Log(), HasSubstr("--exchange_host=eth9: expected an address, a name or an interface"));
}

TEST(AddressesTest, ReadySaysIpv6HostsInBrackets) {
  if (!std::ifstream("/proc/net/if_inet6").good()) GTEST_SKIP() << "this machine has no IPv6";
  const auto server = StartServer({"--local_workers=1", "--host=::"});
  ASSERT_NE(server, nullptr);
  for (const std::string& address : {server->grpc_address(), server->http_address()}) {
    EXPECT_THAT(address, testing::StartsWith("[::]:"));
  }
  const std::string port = server->grpc_address().substr(5);
  for (const std::string host : {"127.0.0.1:", "[::1]:"}) {
    const auto client = Client::Connect(host + port, {});
    ASSERT_TRUE(client.ok()) << client.status();
    ExpectRightAnswer(**client);
  }
  EXPECT_EQ(server->Stop(), 0);
}

TEST(AddressesTest, AwaitedWorkersJoinOverIpv6) {
  if (!std::ifstream("/proc/net/if_inet6").good()) GTEST_SKIP() << "this machine has no IPv6";
  const std::string token_file = testing::TempDir() + "/token";
  std::ofstream(token_file) << "a-secret\n";
  auto front = *ChildProcess::Start(
      "server/switchyard_server",
      {absl::StrCat("--model=m=", kModel), "--compute_dtype=fp32", "--port=0", "--http_port=0", "--await_workers=2",
       "--worker_port=0", "--worker_host=::1", "--exchange=tcp", "--worker_token_file=" + token_file});
  const std::string announcement = "waiting for 2 workers on ";
  std::string address;
  for (int idx = 0; idx < 3000 && address.empty(); ++idx) {
    const std::string log = front->Log();
    const size_t begin = log.find(announcement), end = log.find('\n', begin);
    if (begin != std::string::npos && end != std::string::npos) {
      address = log.substr(begin + announcement.size(), end - begin - announcement.size());
    } else {
      usleep(10'000);
    }
  }
  ASSERT_THAT(address, testing::StartsWith("[::1]:")) << front->Log();
  std::vector<std::unique_ptr<ChildProcess>> workers;
  for (int idx = 0; idx < 2; ++idx) {
    workers.push_back(*ChildProcess::Start(
        "worker/switchyard_worker",
        {"--front=" + address, "--device=cpu", "--threads=1", "--worker_token_file=" + token_file}));
  }
  const auto server = ServerProcess::WaitUntilReady(std::move(front));
  ASSERT_TRUE(server.ok()) << server.status();
  ExpectRightAnswer(*(*server)->Connect());
  // The exchange goes where the front was reached, so that it is not over IPv4.
  EXPECT_TRUE((*server)->process().HasLogged("(exchange tcp)"));
  EXPECT_EQ((*server)->Stop(), 0);
  for (auto& worker : workers) EXPECT_EQ(worker->Wait(), 0) << worker->Log();
}

}  // namespace
}  // namespace switchyard
