// Workers are killed under load: no answer may be wrong and no request lost.
//
// Under Bazel it uses CPU workers and the build's own programs. Elsewhere flags say what to run, for instance on two
// GPUs:
//   kill_test --device=cuda --workers=2 --kills=5 --server=bin/switchyard_server --testdata=tests/testdata
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <random>
#include <thread>

#include "base/clock.h"
#include "cli/tensor_io.h"
#include "tests/e2e/checked_load.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

struct Settings {
  std::string device = "cpu";
  int num_workers = 3;
  int num_kills = 20;
  std::string server = kServerProgram;
  std::string testdata = "tests/testdata";
};
Settings settings;  // from the command line; constant while tests run

// The front itself has to hide the loss of a worker.
const ClientOptions kOneAttempt = {.timeout = absl::Seconds(60), .max_attempts = 1};

std::string Model() { return settings.testdata + "/jargon-moe"; }

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(int num_workers) {
  return ServerProcess::Start({absl::StrCat("--model=m=", Model()), absl::StrCat("--local_workers=", num_workers),
                               "--compute_dtype=fp32", absl::StrCat("--device=", settings.device)},
                              settings.server);
}

// Waits until `condition` holds for the status. Returns the microseconds this took.
template <typename Condition>
int64_t WaitFor(Client& client, const Condition& condition) {
  const SteadyTime begin = Clock::Real().Now();
  while (true) {
    const auto status = client.GetStatus();
    if (status.ok() && condition(*status)) return MicrosBetween(begin, Clock::Real().Now());
    usleep(2000);
  }
}

TEST(Kill, RandomWorkersUnderLoad) {
  auto server = StartServer(settings.num_workers);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  const auto caller = (*server)->Connect(kOneAttempt);
  CheckedLoad load(caller.get(), Model(), 4);
  std::mt19937 random(20);
  int64_t slowest_detection_us = 0, slowest_recovery_us = 0;
  std::vector<int> survivors_before;
  for (int kill_idx = 0; kill_idx < settings.num_kills; ++kill_idx) {
    const int64_t answered = load.answered();
    WaitFor(*client, [&](const v1::GetStatusResponse&) { return load.answered() > answered + 20; });
    const auto before = *client->GetStatus();
    const int victim = static_cast<int>(random() % settings.num_workers);
    ASSERT_EQ(kill(before.ranks(victim).pid(), SIGKILL), 0);
    const int64_t detection_us = WaitFor(*client, [&](const v1::GetStatusResponse& status) {
      return status.state() == "recovering" || status.epoch() > before.epoch();
    });
    const int64_t recovery_us = detection_us + WaitFor(*client, [&](const v1::GetStatusResponse& status) {
                                  return status.state() == "serving" && status.epoch() > before.epoch();
                                });
    std::printf("kill %d, of rank %d: detected after %.0f ms, serving again after %.0f ms\n", kill_idx + 1, victim,
                detection_us / 1e3, recovery_us / 1e3);
    slowest_detection_us = std::max(slowest_detection_us, detection_us);
    slowest_recovery_us = std::max(slowest_recovery_us, recovery_us);
    const auto after = *client->GetStatus();
    for (int rank = 0; rank < settings.num_workers; ++rank) {
      EXPECT_EQ(after.ranks(rank).restarts(), before.ranks(rank).restarts() + (rank == victim ? 1 : 0))
          << "only the victim loads again";
    }
  }
  load.Stop();
  EXPECT_EQ(load.failed(), 0) << load.first_failure();
  EXPECT_EQ(load.wrong(), 0);
  EXPECT_GE(client->GetStatus()->recoveries(), settings.num_kills);
  EXPECT_LT(slowest_detection_us, 1'000'000);
  std::printf("%ld requests answered over %d kills; slowest detection %.0f ms, slowest recovery %.0f ms\n",
              load.answered(), settings.num_kills, slowest_detection_us / 1e3, slowest_recovery_us / 1e3);
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Kill, AStoppedWorkerIsReplaced) {
  auto server = StartServer(2);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  const auto caller = (*server)->Connect(kOneAttempt);
  CheckedLoad load(caller.get(), Model(), 2);
  const auto before = *client->GetStatus();
  ASSERT_EQ(kill(before.ranks(1).pid(), SIGSTOP), 0);
  WaitFor(*client, [&](const v1::GetStatusResponse& status) {
    return status.state() == "serving" && status.epoch() > before.epoch();
  });
  EXPECT_NE(client->GetStatus()->ranks(1).pid(), before.ranks(1).pid());
  load.Stop();
  EXPECT_EQ(load.failed(), 0) << load.first_failure();
  EXPECT_EQ(load.wrong(), 0);
  EXPECT_EQ((*server)->Stop(), 0);
}

TEST(Drain, SigtermUnderLoadLosesNoAcceptedRequest) {
  auto server = StartServer(2);
  ASSERT_TRUE(server.ok()) << server.status();
  const HostMatrix input = *LoadMatrix({Model() + "/golden.safetensors", "model.layers.0.mlp.input"});
  const auto client = (*server)->Connect(kOneAttempt);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> answered{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      while (!stop.load()) {
        const auto result = client->Forward({.model = "m", .layer = "0", .rows = input.view()});
        if (result.ok()) {
          ++answered;
        } else {
          // The request was refused before it was accepted, not cut off later.
          EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
          stop.store(true);
        }
      }
    });
  }
  while (answered.load() < 20) usleep(1000);
  EXPECT_EQ((*server)->Stop(), 0);
  for (std::thread& caller : callers) caller.join();
  EXPECT_NE((*server)->process().Log().find("draining"), std::string::npos);
}

void AddFlags(CLI::App& app) {
  app.add_option("--device", settings.device, "device of the workers");
  app.add_option("--workers", settings.num_workers, "workers of the test that kills them")->check(CLI::Range(1, 64));
  app.add_option("--kills", settings.num_kills, "how many it kills")->check(CLI::Range(1, 10'000));
  app.add_option("--server", settings.server, "the front's program, with the worker's beside it");
  app.add_option("--testdata", settings.testdata, "the folder with jargon-moe");
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  CLI::App app{"Kills workers under load and checks every answer."};
  switchyard::AddFlags(app);
  CLI11_PARSE(app, argc, argv);
  return RUN_ALL_TESTS();
}
