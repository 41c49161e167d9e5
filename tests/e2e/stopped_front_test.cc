// A front that did not run for a while (SIGSTOP, a paused machine) finds its workers as it left them: it gives none up
// and loses no request.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/e2e/checked_load.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] = "tests/testdata/jargon-moe";
constexpr int kNumWorkers = 2;
// Longer than --worker_timeout_ms below, so a front that timed its workers' silence would give them up.
constexpr useconds_t kStoppedUs = 1'500'000;
// Several pings, at the first of which the front would have given up the workers.
constexpr int64_t kWatchedUs = 600'000;

struct Served {
  std::unique_ptr<ServerProcess> front;
  std::vector<std::unique_ptr<ChildProcess>> awaited_workers;
};

std::vector<std::string> Flags(const std::string& workers) {
  return {absl::StrCat("--model=m=", kModel), workers, "--compute_dtype=fp32", "--worker_timeout_ms=1000"};
}

absl::StatusOr<Served> StartWithLocalWorkers() {
  SY_ASSIGN_OR_RETURN(auto front, ServerProcess::Start(Flags(absl::StrCat("--local_workers=", kNumWorkers))));
  return Served{std::move(front), {}};
}

absl::StatusOr<Served> StartWithAwaitedWorkers() {
  std::vector<std::string> flags = Flags(absl::StrCat("--await_workers=", kNumWorkers));
  flags.insert(flags.end(), {"--port=0", "--http_port=0", "--worker_port=0"});
  SY_ASSIGN_OR_RETURN(auto front, ChildProcess::Start(kServerProgram, flags));
  SY_ASSIGN_OR_RETURN(const std::string port, WaitForWorkerPort(*front));
  Served served;
  for (int i = 0; i < kNumWorkers; ++i) {
    SY_ASSIGN_OR_RETURN(auto worker, ChildProcess::Start(kWorkerProgram, {absl::StrCat("--front=", port),
                                                                          "--device=cpu", "--threads=1"}));
    served.awaited_workers.push_back(std::move(worker));
  }
  SY_ASSIGN_OR_RETURN(served.front, ServerProcess::WaitUntilReady(std::move(front)));
  return served;
}

struct KindOfWorkers {
  const char* name;
  absl::StatusOr<Served> (*start)();
};

class StoppedFrontTest : public testing::TestWithParam<KindOfWorkers> {};

void Stop(const ChildProcess& process) {
  process.Signal(SIGSTOP);
  siginfo_t stopped;
  ASSERT_EQ(waitid(P_PID, process.pid(), &stopped, WSTOPPED), 0);
}

// Everything that changes when a worker is given up.
std::vector<int64_t> Identity(const v1::GetStatusResponse& status) {
  std::vector<int64_t> identity = {status.epoch(), status.recoveries()};
  for (const v1::Rank& rank : status.ranks()) identity.insert(identity.end(), {rank.pid(), rank.restarts()});
  return identity;
}

TEST_P(StoppedFrontTest, KeepsItsWorkersAndAnswers) {
  const auto served = GetParam().start();
  ASSERT_TRUE(served.ok()) << served.status();
  ServerProcess& front = *served->front;
  const auto client = front.Connect({.timeout = absl::Seconds(60), .max_attempts = 1});
  const std::vector<int64_t> before = Identity(*client->GetStatus());

  CheckedLoad load(client.get(), kModel, 2);
  load.WaitForAnswers(20);
  Stop(front.process());
  CheckedLoad load_meanwhile(client.get(), kModel, 2);  // its first requests are sent while the front is stopped
  usleep(kStoppedUs);
  front.process().Signal(SIGCONT);
  const SteadyTime continued = Clock::Real().Now();
  load.WaitForAnswers(20);
  load_meanwhile.WaitForAnswers(20);
  while (MicrosBetween(continued, Clock::Real().Now()) < kWatchedUs) load.WaitForAnswers(1);

  const auto after = client->GetStatus();
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(Identity(*after), before) << front.process().Log();
  EXPECT_EQ(after->state(), "serving");
  for (CheckedLoad* each : {&load, &load_meanwhile}) {
    each->Stop();
    EXPECT_EQ(each->failed(), 0) << each->first_failure();
    EXPECT_EQ(each->wrong(), 0);
  }
  EXPECT_EQ(front.Stop(), 0);
  for (const auto& worker : served->awaited_workers) EXPECT_EQ(worker->Wait(), 0) << worker->Log();
}

INSTANTIATE_TEST_SUITE_P(Workers, StoppedFrontTest,
                         testing::Values(KindOfWorkers{"local", StartWithLocalWorkers},
                                         KindOfWorkers{"awaited", StartWithAwaitedWorkers}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace switchyard
