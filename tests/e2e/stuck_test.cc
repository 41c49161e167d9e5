// Steps that do not end: one thread of a worker is stopped while its process answers pings, or packets between two
// workers are dropped. The front has to notice, to say which rank it was, and to answer every request all the same.
//
// Under Bazel it uses CPU workers and the build's own programs. Elsewhere flags say what to run, as those of kill_test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "tests/e2e/checked_load.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int64_t kMaxNoticeUs = 3'000'000;

struct Settings {
  std::string device = "cpu";
  std::string server = kServerProgram;
  std::string testdata = "tests/testdata";
};
Settings settings;  // from the command line; constant while tests run

std::string Model() { return settings.testdata + "/jargon-moe"; }

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(const std::string& exchange = "auto") {
  return ServerProcess::Start({absl::StrCat("--model=m=", Model()), "--local_workers=2", "--compute_dtype=fp32",
                               absl::StrCat("--device=", settings.device), absl::StrCat("--exchange=", exchange)},
                              settings.server);
}

// The number of the thread of this name; -1 when the process has none.
pid_t FindThread(pid_t pid, const std::string& name) {
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/task"))) {
    std::ifstream file(entry.path() / "comm");
    std::string found;
    if (std::getline(file, found) && found == name) return std::stoi(entry.path().filename());
  }
  return -1;
}

// Keeps one thread of another process stopped. Used by one thread.
class StoppedThread {
 public:
  explicit StoppedThread(pid_t tid) : tid_(tid) {
    if (ptrace(PTRACE_SEIZE, tid_, nullptr, nullptr) != 0 || ptrace(PTRACE_INTERRUPT, tid_, nullptr, nullptr) != 0 ||
        waitpid(tid_, nullptr, __WALL) != tid_) {
      error_ = errno;
    }
  }
  ~StoppedThread() {
    if (!Reap()) ptrace(PTRACE_DETACH, tid_, nullptr, nullptr);
  }
  int error() const { return error_; }
  // The process has no end for its parent before its tracer has seen it. Returns whether it has ended.
  bool Reap() {
    int status = 0;
    if (!has_ended_ && waitpid(tid_, &status, __WALL | WNOHANG) == tid_) {
      has_ended_ = WIFEXITED(status) || WIFSIGNALED(status);
    }
    return has_ended_;
  }

 private:
  const pid_t tid_;
  int error_ = 0;
  bool has_ended_ = false;
};

// Waits for `condition`; returns after how many microseconds it held. Fails the test after a minute.
int64_t WaitFor(const std::function<bool()>& condition) {
  const SteadyTime begin = Clock::Real().Now();
  while (!condition()) {
    if (MicrosBetween(begin, Clock::Real().Now()) > 60'000'000) {
      ADD_FAILURE() << "nothing happened for a minute";
      break;
    }
    usleep(2000);
  }
  return MicrosBetween(begin, Clock::Real().Now());
}

// Waits until the group of a later epoch serves, and a request of then is answered. Calls `meanwhile` again and again.
// Returns the microseconds until the loss of the old group was noticed.
int64_t WaitForRecovery(
    Client& client, const CheckedLoad& load, int64_t epoch, const std::function<void()>& meanwhile = [] {}) {
  const auto is = [&](const auto& condition) {
    return [&] {
      meanwhile();
      const auto status = client.GetStatus();
      return status.ok() && condition(*status);
    };
  };
  const int64_t noticed = WaitFor(
      is([&](const v1::GetStatusResponse& status) { return status.state() != "serving" || status.epoch() > epoch; }));
  WaitFor(
      is([&](const v1::GetStatusResponse& status) { return status.state() == "serving" && status.epoch() > epoch; }));
  load.WaitForAnswers(3);
  return noticed;
}

// Stops the thread of rank 1's worker that `find` finds, while requests come in.
void StopThreadUnderLoad(const std::string& name, pid_t (*find)(pid_t worker)) {
  auto server = StartServer();
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  {
    const auto caller = (*server)->Connect({.timeout = absl::Seconds(60), .max_attempts = 1});
    CheckedLoad load(caller.get(), Model(), 2);
    load.WaitForAnswers(3);
    const auto before = *client->GetStatus();
    StoppedThread stopped(find(before.ranks(1).pid()));
    if (stopped.error() != 0) GTEST_SKIP() << "ptrace is not allowed here: error " << stopped.error();
    const int64_t noticed_us = WaitForRecovery(*client, load, before.epoch(), [&] { stopped.Reap(); });
    EXPECT_LT(noticed_us, kMaxNoticeUs);
    const auto after = *client->GetStatus();
    EXPECT_EQ(after.ranks(0).pid(), before.ranks(0).pid()) << "the rank that waited keeps its weights";
    EXPECT_NE(after.ranks(1).pid(), before.ranks(1).pid());
    load.Stop();
    EXPECT_EQ(load.failed() + load.wrong(), 0);
  }
  EXPECT_TRUE((*server)->process().HasLogged(absl::StrCat("rank 1: left: its ", name, " thread stands still")));
  EXPECT_THAT((*server)->Get("/metrics"), HasSubstr("switchyard_oldest_step_seconds"));
  EXPECT_EQ((*server)->Stop(), 0);
}

// The step thread is the main thread of the process.
TEST(Stuck, AStoppedStepThreadIsNoticedNamedAndReplacedUnderLoad) {
  StopThreadUnderLoad("step", [](pid_t worker) { return worker; });
}

TEST(Stuck, AStoppedCompletionThreadIsNoticedNamedAndReplacedUnderLoad) {
  if (settings.device == "cpu") GTEST_SKIP() << "only workers on GPUs have a completion thread";
  StopThreadUnderLoad("completion", [](pid_t worker) { return FindThread(worker, "completion"); });
}

TEST(Stuck, AStoppedStepThreadIsNoticedBeforeARequestNeedsIt) {
  auto server = StartServer();
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  const auto before = *client->GetStatus();
  StoppedThread stopped(before.ranks(0).pid());
  if (stopped.error() != 0) GTEST_SKIP() << "ptrace is not allowed here: error " << stopped.error();
  EXPECT_LT(WaitFor([&] { return client->GetStatus()->state() != "serving"; }), kMaxNoticeUs);
  WaitFor([&] {
    stopped.Reap();
    return client->GetStatus()->state() == "serving";
  });
  EXPECT_NE(client->GetStatus()->ranks(0).pid(), before.ranks(0).pid());
  EXPECT_EQ((*server)->Stop(), 0);
}

std::string CommandLine(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/cmdline"));
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Drops all packets that arrive at the TCP connections of a worker, other than that to its front. Returns how many
// there are.
int DropPacketsFromPeers(pid_t pid) {
  const std::string command = CommandLine(pid);
  const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
  const sock_fprog program = {1, &drop};
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/fd"))) {
    const int number = std::stoi(entry.path().filename());
    const UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    if (!fd.valid() || getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &size) != 0) continue;
    if (peer.ss_family != AF_INET && peer.ss_family != AF_INET6) continue;  // in both, the port is at the same place
    const int port = ntohs(reinterpret_cast<const sockaddr_in&>(peer).sin_port);
    if (command.find(absl::StrCat("--front=127.0.0.1:", port)) != std::string::npos) continue;
    count += setsockopt(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) == 0;
  }
  return count;
}

class StuckExchange : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Exchanges, StuckExchange, testing::Values("tcp", "gloo"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(StuckExchange, PacketsDroppedBetweenTwoWorkersCostSecondsAndNoRequest) {
  if (settings.device != "cpu") GTEST_SKIP() << "GPUs of one host exchange rows without packets";
  auto server = StartServer(GetParam());
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  {
    const auto caller = (*server)->Connect({.timeout = absl::Seconds(60), .max_attempts = 1});
    CheckedLoad load(caller.get(), Model(), 2);
    load.WaitForAnswers(3);
    const auto before = *client->GetStatus();
    if (DropPacketsFromPeers(before.ranks(1).pid()) == 0) {
      GTEST_SKIP() << "no connections of another process can be taken here (pidfd_getfd), or there are none";
    }
    EXPECT_LT(WaitForRecovery(*client, load, before.epoch()), kMaxNoticeUs + 500'000);
    const auto after = *client->GetStatus();
    EXPECT_EQ(after.ranks(0).pid(), before.ranks(0).pid()) << "neither is to blame";
    EXPECT_EQ(after.ranks(1).pid(), before.ranks(1).pid()) << "neither is to blame";
    load.Stop();
    EXPECT_EQ(load.failed() + load.wrong(), 0);
  }
  EXPECT_TRUE((*server)->process().HasLogged("rows has not ended after"));
  EXPECT_TRUE((*server)->process().HasLogged("waits for rank"));
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Stuck, AnAwaitedWorkerNoticesThatItsFrontIsSilent) {
  if (settings.device != "cpu") GTEST_SKIP() << "one test of this is enough";
  auto front =
      ChildProcess::Start(kServerProgram, {absl::StrCat("--model=m=", Model()), "--await_workers=1", "--port=0",
                                           "--http_port=0", "--worker_port=0", "--compute_dtype=fp32"});
  ASSERT_TRUE(front.ok()) << front.status();
  const auto port = WaitForWorkerPort(**front);
  ASSERT_TRUE(port.ok()) << port.status();
  auto worker = ChildProcess::Start(kWorkerProgram, {absl::StrCat("--front=", *port), "--device=cpu",
                                                     "--front_timeout_ms=1000", "--rejoin_timeout_ms=0"});
  ASSERT_TRUE(worker.ok()) << worker.status();
  EXPECT_THAT((*front)->ReadLine(), HasSubstr("READY"));
  (*front)->Signal(SIGSTOP);
  EXPECT_EQ((*worker)->Wait(), 3);
  EXPECT_TRUE((*worker)->HasLogged("it has said nothing for 1000 ms"));
  (*front)->Signal(SIGCONT);
}

void AddFlags(CLI::App& app) {
  app.add_option("--device", settings.device, "device of the workers");
  app.add_option("--server", settings.server, "the front's program, with the worker's beside it");
  app.add_option("--testdata", settings.testdata, "the folder with jargon-moe");
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  CLI::App app{"Gets workers stuck under load and checks every answer."};
  switchyard::AddFlags(app);
  CLI11_PARSE(app, argc, argv);
  return RUN_ALL_TESTS();
}
