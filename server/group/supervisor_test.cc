#include "server/group/supervisor.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "moe/link/step_socket.h"

namespace switchyard {
namespace {

// Shell scripts stand in for workers, so that real processes start and end.
class SupervisorTest : public testing::Test {
 protected:
  std::string WriteScript(const std::string& body) {
    const std::string path = testing::TempDir() + "/worker" + std::to_string(++num_scripts_) + ".sh";
    std::ofstream(path) << "#!/bin/sh\n" << body;
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
  }

  absl::StatusOr<std::unique_ptr<Supervisor>> Start(const std::string& script, int num_workers) {
    SupervisorOptions options;
    options.num_workers = num_workers;
    options.binary = script;
    options.environment = {"SWITCHYARD_TEST=yes"};
    return Supervisor::Start(
        options,
        [this](int index, UniqueFd socket) {
          MutexLock lock(&mu_);
          spawned_.push_back(index);
          sockets_.push_back(std::move(socket));
          changed_.SignalAll();
        },
        [this](int index, const std::string& how) {
          MutexLock lock(&mu_);
          exited_.push_back(std::to_string(index) + ": " + how);
          changed_.SignalAll();
        });
  }

  void WaitForSpawns(size_t count) {
    MutexLock lock(&mu_);
    while (spawned_.size() < count) changed_.Wait(&mu_);
  }
  std::string WaitForExit(size_t count) {
    MutexLock lock(&mu_);
    while (exited_.size() < count) changed_.Wait(&mu_);
    return exited_[count - 1];
  }

  int num_scripts_ = 0;
  Mutex mu_;
  CondVar changed_;
  std::vector<int> spawned_ ABSL_GUARDED_BY(mu_);
  std::vector<UniqueFd> sockets_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> exited_ ABSL_GUARDED_BY(mu_);
};

TEST_F(SupervisorTest, AMissingProgramIsNamed) {
  const auto supervisor = Start("/no/such/worker", 1);
  EXPECT_TRUE(absl::IsNotFound(supervisor.status())) << supervisor.status();
}

TEST_F(SupervisorTest, AKilledWorkerIsRestarted) {
  const auto supervisor = *Start(WriteScript("exec sleep 1000\n"), 2);
  WaitForSpawns(2);
  const std::vector<int> pids = supervisor->pids();
  supervisor->Kill(1, pids[1] + 100000);  // another process id: nothing happens
  supervisor->Kill(1, pids[1]);
  EXPECT_EQ(WaitForExit(1), "1: worker killed by signal 9");
  WaitForSpawns(3);
  EXPECT_EQ(supervisor->pids()[0], pids[0]);
  EXPECT_NE(supervisor->pids()[1], pids[1]);
  supervisor->Shutdown(std::chrono::milliseconds(0));
  EXPECT_EQ(supervisor->pids(), (std::vector<int>{0, 0}));
}

TEST_F(SupervisorTest, AWorkerInheritsItsSocketAndTheEnvironment) {
  const auto supervisor =
      *Start(WriteScript("test \"$SWITCHYARD_TEST\" = yes && test -S /proc/self/fd/3 && exit 42\n"), 1);
  EXPECT_EQ(WaitForExit(1), "0: worker exited with status 42");
}

TEST_F(SupervisorTest, ShutdownWaitsForWorkersThatEndByThemselves) {
  // The script ends when its link is closed, as a worker does.
  const auto supervisor = *Start(WriteScript("cat <&3 >/dev/null\nexit 0\n"), 1);
  WaitForSpawns(1);
  supervisor->StopRestarting();
  {
    MutexLock lock(&mu_);
    sockets_.clear();
  }
  supervisor->Shutdown(std::chrono::seconds(60));
  EXPECT_EQ(WaitForExit(1), "0: worker exited with status 0");
}

}  // namespace
}  // namespace switchyard
