// The programs serve whatever state they are started in: descriptors, signals, environment, limits.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/unique_fd.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "moe/link/shared_memory.h"
#include "moe/link/step_socket.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] = "tests/testdata/jargon-moe";

// A socket that listens on loopback, and nobody accepts.
class SilentPort {
 public:
  SilentPort() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(fd_.get(), any, size), 0);
    EXPECT_EQ(listen(fd_.get(), 16), 0);
    EXPECT_EQ(getsockname(fd_.get(), any, &size), 0);
    port_ = ntohs(address.sin_port);
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  int port() const { return port_; }
  bool has_caller() const {
    pollfd polled = {fd_.get(), POLLIN, 0};
    return poll(&polled, 1, 0) > 0;
  }

 private:
  UniqueFd fd_;
  int port_ = 0;
};

// Starts a front with two workers by the shell commands `setup`, which end in one that runs "$0" "$@".
absl::StatusOr<std::unique_ptr<ServerProcess>> StartBy(const std::string& setup, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"-c",
                                        setup,
                                        kServerProgram,
                                        "--port=0",
                                        "--http_port=0",
                                        absl::StrCat("--model=m=", kModel),
                                        "--local_workers=2",
                                        "--device=cpu",
                                        "--compute_dtype=fp32"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  SY_ASSIGN_OR_RETURN(auto shell, ChildProcess::Start("/bin/sh", arguments));
  return ServerProcess::WaitUntilReady(std::move(shell));
}

void ExpectRightAnswer(const ServerProcess& server) {
  const std::string file = absl::StrCat(kModel, "/golden.safetensors");
  const HostMatrix input = *LoadMatrix({file, "model.layers.3.mlp.input"});
  const HostMatrix expected = *LoadMatrix({file, "model.layers.3.mlp.output"});
  const auto result = server.Connect()->Forward({.model = "m", .layer = "3", .rows = input.view()});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(Compare(result->rows.view(), expected.view(), {1e-4, 1e-5}).within_tolerance());
}

std::vector<int> WorkerPids(Client& client) {
  const auto status = client.GetStatus();
  std::vector<int> pids;
  for (const auto& rank : status->ranks()) pids.push_back(static_cast<int>(rank.pid()));
  return pids;
}

TEST(Inherited, ClosedDescriptors) {
  const auto server = StartBy("exec \"$0\" \"$@\" <&- 2>&-");
  ASSERT_TRUE(server.ok()) << server.status();
  std::vector<int> pids = WorkerPids(*(*server)->Connect());
  pids.push_back((*server)->process().pid());
  for (const int pid : pids) {
    for (const int fd : {STDIN_FILENO, STDERR_FILENO}) {
      const std::string path = absl::StrCat("/proc/", pid, "/fd/", fd);
      EXPECT_EQ(std::filesystem::read_symlink(path), "/dev/null") << path;
    }
  }
  ExpectRightAnswer(**server);
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Inherited, SignalsIgnoredAndBlocked) {
  const auto server = StartBy("exec env --ignore-signal --block-signal \"$0\" \"$@\"");
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  const std::vector<int> before = WorkerPids(*client);
  ASSERT_EQ(kill(before[0], SIGKILL), 0);
  while (true) {  // until another worker is in its place
    const auto status = client->GetStatus();
    ASSERT_TRUE(status.ok()) << status.status();
    if (status->state() == "serving" && status->ranks(0).pid() != before[0]) break;
    usleep(2000);
  }
  ExpectRightAnswer(**server);
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Inherited, AProxyForTheOutside) {
  const SilentPort proxy;
  const auto server = StartBy(absl::StrCat("unset no_proxy no_grpc_proxy; export http_proxy=http://", proxy.address(),
                                           " https_proxy=http://", proxy.address(), " grpc_proxy=http://",
                                           proxy.address(), "; exec timeout 60 \"$0\" \"$@\""));
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_FALSE(proxy.has_caller());
  ExpectRightAnswer(**server);
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Inherited, NoEnvironmentAndAStrangeUmask) {
  const std::string traces = testing::TempDir() + "/traces.json";
  const auto server = StartBy("umask 277; ulimit -S -s 96; exec env -i \"$0\" \"$@\"", {"--trace_file=" + traces});
  ASSERT_TRUE(server.ok()) << server.status();
  struct stat info {};
  ASSERT_EQ(stat(traces.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600);
  ExpectRightAnswer(**server);
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Inherited, APortInUseEndsTheStartBeforeAnyWorkerIsStarted) {
  const SilentPort taken;
  for (const char* flag : {"--port", "--http_port"}) {
    const std::string other = std::string(flag) == "--port" ? "--http_port=0" : "--port=0";
    auto process =
        ChildProcess::Start(kServerProgram, {absl::StrCat(flag, "=", taken.port()), other, "--local_workers=4",
                                             "--device=cpu", absl::StrCat("--model=m=", kModel)});
    ASSERT_TRUE(process.ok()) << process.status();
    EXPECT_EQ((*process)->Wait(), 1);
    const std::string log = (*process)->Log();
    EXPECT_NE(log.find(absl::StrCat("switchyard_server: ", flag, ": cannot listen on ")), std::string::npos) << log;
    EXPECT_EQ(log.find("started as process"), std::string::npos) << log;
  }
}

// The settings of libgomp in a process's environment.
std::string ThreadWaitingOf(int pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/environ"));
  std::string found;
  for (std::string entry; std::getline(file, entry, '\0');) {
    if (entry.rfind("OMP_WAIT_POLICY=", 0) == 0 || entry.rfind("GOMP_SPINCOUNT=", 0) == 0) found += entry + ' ';
  }
  return found;
}

TEST(Inherited, AnAwaitedWorkerWaitsBetweenLoopsAsALocalOneDoes) {
  const auto local = ServerProcess::Start({absl::StrCat("--model=m=", kModel), "--local_workers=1"});
  ASSERT_TRUE(local.ok()) << local.status();
  auto front = ChildProcess::Start(kServerProgram, {absl::StrCat("--model=m=", kModel), "--port=0", "--http_port=0",
                                                    "--await_workers=1", "--worker_port=0"});
  ASSERT_TRUE(front.ok()) << front.status();
  const std::string waiting = "waiting for 1 workers on ";
  std::string log;
  while ((log = (*front)->Log()).find(waiting) == std::string::npos) usleep(2000);
  const size_t address = log.find(waiting) + waiting.size();
  const auto worker =
      ChildProcess::Start("worker/switchyard_worker",
                          {"--front=" + log.substr(address, log.find('\n', address) - address), "--device=cpu"});
  ASSERT_TRUE(worker.ok()) << worker.status();
  const auto awaited = ServerProcess::WaitUntilReady(*std::move(front));
  ASSERT_TRUE(awaited.ok()) << awaited.status();
  const std::string settings = ThreadWaitingOf(WorkerPids(*(*local)->Connect())[0]);
  EXPECT_NE(settings, "");
  EXPECT_EQ(ThreadWaitingOf((*worker)->pid()), settings);
}

TEST(Inherited, AWorkerWhoseFrontIsGoneEnds) {
  auto sockets = MakeSocketPair();
  ASSERT_TRUE(sockets.ok()) << sockets.status();
  const LinkLayout layout = LinkLayout::For(1, 4096, 4096, 4096);
  const auto memory = SharedMemory::Create(layout.total_bytes());
  ASSERT_TRUE(SendSetup(sockets->front.get(), layout, memory->fd()).ok());
  sockets->front.reset();
  ASSERT_EQ(fcntl(sockets->worker.get(), F_SETFD, 0), 0);  // the worker inherits it
  const SilentPort nobody;
  auto worker =
      ChildProcess::Start("worker/switchyard_worker", {"--front=" + nobody.address(), "--local_index=0", "--device=cpu",
                                                       absl::StrCat("--link_fd=", sockets->worker.get())});
  ASSERT_TRUE(worker.ok()) << worker.status();
  EXPECT_EQ((*worker)->Wait(), 1);
  EXPECT_NE((*worker)->Log().find("the front that started this worker has ended"), std::string::npos)
      << (*worker)->Log();
}

}  // namespace
}  // namespace switchyard
