#include "server/group/supervisor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "moe/link/step_socket.h"

namespace switchyard {
namespace {

// Lets the system refuse pidfds to this thread and to those that it will start, as old kernels and sandboxes do.
bool RefusePidfds(int error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_send_signal, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {static_cast<uint16_t>(std::size(filter)), filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Whether this process has children that nobody has waited for, or that still run.
bool HasChildren() {
  siginfo_t ignored;
  return waitid(P_ALL, 0, &ignored, WEXITED | WNOHANG | WNOWAIT) == 0;
}

// Shell scripts stand in for workers, so that real processes start and end.
class SupervisorTest : public testing::Test {
 protected:
  std::string WriteScript(const std::string& body) {
    const std::string path = testing::TempDir() + "/worker" + std::to_string(++num_scripts_) + ".sh";
    std::ofstream(path) << "#!/bin/sh\n" << body;
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
  }

  absl::StatusOr<std::unique_ptr<Supervisor>> Start(const std::string& script, int num_workers,
                                                    SupervisorOptions options = {}) {
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

TEST_F(SupervisorTest, AWorkerThatDoesNotJoinIsKilledAndRestarted) {
  const auto supervisor =
      *Start(WriteScript("exec sleep 1000\n"), 2, {.join_timeout = std::chrono::milliseconds(3000)});
  WaitForSpawns(2);
  const std::vector<int> pids = supervisor->pids();
  supervisor->NoteJoined(0, pids[1]);  // another process: it does not count
  supervisor->NoteJoined(1, pids[1]);
  EXPECT_EQ(WaitForExit(1), "0: worker killed by signal 9");
  WaitForSpawns(3);
  EXPECT_NE(supervisor->pids()[0], pids[0]);
  EXPECT_EQ(supervisor->pids()[1], pids[1]) << "it has joined in time";
}

TEST_F(SupervisorTest, AWorkerInheritsItsSocketAndTheEnvironment) {
  const auto supervisor =
      *Start(WriteScript("test \"$SWITCHYARD_TEST\" = yes && test -S /proc/self/fd/3 && exit 42\n"), 1);
  EXPECT_EQ(WaitForExit(1), "0: worker exited with status 42");
}

TEST_F(SupervisorTest, AWorkerInheritsNoOtherDescriptor) {
  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const UniqueFd inherited(fcntl(file.get(), F_DUPFD, 50));  // without close-on-exec, as a shell may pass one on
  const auto supervisor =
      *Start(WriteScript(absl::StrCat("test ! -e /proc/$$/fd/", inherited.get(), " && exit 42\n")), 1);
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

TEST_F(SupervisorTest, AWorkerIsRestartedWithoutPidfds) {
  for (const int error : {EPERM, ENOSYS}) {
    std::thread([&] {
      ASSERT_TRUE(RefusePidfds(error));
      const size_t before = [&] {
        MutexLock lock(&mu_);
        exited_.clear();
        return spawned_.size();
      }();
      const auto supervisor = *Start(WriteScript("exec sleep 1000\n"), 1);
      WaitForSpawns(before + 1);
      supervisor->Kill(0, supervisor->pids()[0]);
      EXPECT_EQ(WaitForExit(1), "0: worker killed by signal 9");
      WaitForSpawns(before + 2);
    }).join();
    EXPECT_FALSE(HasChildren());
  }
}

TEST_F(SupervisorTest, WorkersThatAreJustBeingStartedEndWithIt) {
  const std::string script = WriteScript("exec sleep 1000\n");
  for (int i = 0; i < 25; ++i) {
    {
      const auto supervisor = *Start(script, 4);
      std::this_thread::sleep_for(std::chrono::microseconds(200 * i));  // another moment of the start each time
    }
    EXPECT_FALSE(HasChildren());
  }
}

TEST_F(SupervisorTest, AWorkerWhoseStatusIsLostHasEnded) {
  const auto before = signal(SIGCHLD, SIG_IGN);  // the system then reaps children itself
  {
    const auto supervisor = *Start(WriteScript("exec sleep 1000\n"), 1);
    WaitForSpawns(1);
    supervisor->Kill(0, supervisor->pids()[0]);
    EXPECT_EQ(WaitForExit(1), "0: worker ended, and the system does not say how");
    WaitForSpawns(2);
  }
  signal(SIGCHLD, before);
}

}  // namespace
}  // namespace switchyard
