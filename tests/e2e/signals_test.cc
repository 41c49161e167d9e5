// Signals do what docs/operations.md says, and callers see why their calls end.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "base/mutex.h"
#include "cli/tensor_io.h"
#include "client/forward_stream.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] = "tests/testdata/jargon-moe";

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(std::vector<std::string> flags = {}) {
  flags.insert(flags.end(), {absl::StrCat("--model=m=", kModel), "--local_workers=2"});
  return ServerProcess::Start(flags);
}

// Waits for a text in the log of a process that goes on.
void AwaitLog(const ServerProcess& server, const std::string& text) { EXPECT_TRUE(server.process().HasLogged(text)); }

TEST(Signals, HangupOpensFilesAnewAndEndsNothing) {
  const std::string traces = testing::TempDir() + "/traces.json";
  const auto server = StartServer({"--trace_file=" + traces});
  ASSERT_TRUE(server.ok()) << server.status();
  std::filesystem::rename(traces, traces + ".1");
  (*server)->process().Signal(SIGHUP);
  AwaitLog(**server, "files are opened anew");
  while (!std::filesystem::exists(traces)) usleep(2000);
  const auto status = (*server)->Connect()->GetStatus();
  ASSERT_TRUE(status.ok()) << status.status();
  for (const auto& rank : status->ranks()) EXPECT_EQ(kill(static_cast<pid_t>(rank.pid()), SIGHUP), 0);
  EXPECT_EQ((*server)->Stop(), 0);
  EXPECT_EQ((*server)->process().Log().find("recovering"), std::string::npos) << (*server)->process().Log();
}

TEST(Signals, Usr1LogsTheStateAndUsr2DoesNothing) {
  const auto server = StartServer();
  ASSERT_TRUE(server.ok()) << server.status();
  (*server)->process().Signal(SIGUSR2);
  (*server)->process().Signal(SIGUSR1);
  AwaitLog(**server, "SIGUSR1: serving, epoch 1");
  AwaitLog(**server, "SIGUSR1: rank 1: serving");
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Signals, QuitEndsEverythingAtOnce) {
  const auto server = StartServer();
  ASSERT_TRUE(server.ok()) << server.status();
  const auto status = (*server)->Connect()->GetStatus();
  ASSERT_TRUE(status.ok()) << status.status();
  (*server)->process().Signal(SIGQUIT);
  EXPECT_EQ((*server)->process().Wait(), 128 + SIGQUIT);
  for (const auto& rank : status->ranks()) {
    while (kill(static_cast<pid_t>(rank.pid()), 0) == 0) usleep(2000);
  }
}

// Calls until the server is gone, and notes the codes of calls that fail.
class Callers {
 public:
  explicit Callers(const ServerProcess& server) {
    for (int i = 0; i < 12; ++i) threads_.emplace_back([this, &server] { Run(server); });
  }
  std::set<absl::StatusCode> Join() {
    stop_.store(true);
    for (std::thread& thread : threads_) thread.join();
    MutexLock lock(&mu_);
    return codes_;
  }
  int64_t answered() const { return answered_.load(); }

 private:
  void Run(const ServerProcess& server) {
    const auto client = server.Connect({.timeout = absl::Seconds(60), .max_attempts = 1});
    const HostMatrix rows = HostMatrix::Allocate(DType::kF32, 1, 128);
    while (!stop_.load()) {
      const auto result = client->Forward({.model = "m", .layer = "0", .rows = std::as_const(rows).view()});
      if (result.ok()) ++answered_;
      MutexLock lock(&mu_);
      if (!result.ok()) codes_.insert(result.status().code());
    }
  }

  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> answered_{0};
  Mutex mu_;
  std::set<absl::StatusCode> codes_ ABSL_GUARDED_BY(mu_);
};

TEST(Signals, CallsAfterTermFailWithUnavailable) {
  const std::set<absl::StatusCode> unavailable = {absl::StatusCode::kUnavailable};
  for (int i = 0; i < 3; ++i) {
    const auto server = StartServer();
    ASSERT_TRUE(server.ok()) << server.status();
    const auto client = (*server)->Connect();
    const auto idle_stream = *client->OpenStream({});
    const HostMatrix rows = HostMatrix::Allocate(DType::kF32, 1, 128);
    ASSERT_TRUE(idle_stream->Forward({.model = "m", .layer = "0", .rows = std::as_const(rows).view()}).ok());
    Callers callers(**server);
    while (callers.answered() < 100) usleep(1000);
    EXPECT_EQ((*server)->Stop(), 0);
    EXPECT_EQ(callers.Join(), unavailable);
    EXPECT_TRUE(absl::IsUnavailable(idle_stream->Close()));
  }
}

}  // namespace
}  // namespace switchyard
