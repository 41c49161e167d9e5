// Steps that do not end: one thread of a worker is stopped while its process answers pings, or packets between two
// workers are dropped. The front has to notice, to say which rank it was, and to answer every request all the same.
//
// Under Bazel it uses CPU workers and the build's own programs. Elsewhere flags say what to run, as those of kill_test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <functional>

#include "base/clock.h"
#include "tests/e2e/checked_load.h"
#include "tests/e2e/disturbances.h"
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
    EXPECT_EQ(load.failed() + load.wrong(), 0) << load.first_failure();
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
    EXPECT_EQ(load.failed() + load.wrong(), 0) << load.first_failure();
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
