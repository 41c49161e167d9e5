#include "base/process/exhausted.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <iterator>
#include <new>
#include <thread>

#include "base/unique_fd.h"

namespace switchyard {
namespace {

// From here on the system refuses threads and processes, as it does at a limit. A real limit would not bind root.
void RefuseThreads() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {static_cast<uint16_t>(std::size(filter)), filter};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(3);
}

TEST(Exhausted, AThreadThatCannotStartEndsTheProgramWithTheLimitsNames) {
  EXPECT_EXIT(
      {
        NameLimitsAtTheEnd("program");
        std::thread([] {
          RefuseThreads();
          std::thread([] {}).join();
        }).join();
      },
      testing::ExitedWithCode(1), "^program: cannot start a thread: .*ulimit -u is .*, the container's pids limit is ");
}

TEST(Exhausted, NoMemoryEndsTheProgramWithTheLimit) {
  EXPECT_EXIT(
      {
        NameLimitsAtTheEnd("program");
        std::thread([] { throw std::bad_alloc(); }).join();
      },
      testing::ExitedWithCode(1), "^program: no memory is left; this process may use [1-9][0-9]* MiB");
}

TEST(Exhausted, ThreadsAreCheckedBeforeTheyAreNeeded) {
  EXPECT_TRUE(CheckThreads(8).ok());
  EXPECT_EXIT(
      {
        RefuseThreads();
        const absl::Status status = CheckThreads(8);
        std::fprintf(stderr, "%s", std::string(status.message()).c_str());
        _exit(absl::IsResourceExhausted(status) ? 0 : 1);
      },
      testing::ExitedWithCode(0), "^only 0 of 8 threads can be started: .*ulimit -u is ");
}

TEST(Exhausted, ErrorsOfFilesNameTheirLimit) {
  EXPECT_EXIT(
      {
        signal(SIGXFSZ, SIG_IGN);
        rlimit limit;
        getrlimit(RLIMIT_FSIZE, &limit);
        limit.rlim_cur = 4096;
        setrlimit(RLIMIT_FSIZE, &limit);
        const UniqueFd file(memfd_create("test", MFD_CLOEXEC));
        if (ftruncate(file.get(), 8192) == 0) _exit(1);
        std::fprintf(stderr, "%s", std::string(ErrnoStatus(errno, "sizing").message()).c_str());
        _exit(0);
      },
      testing::ExitedWithCode(0), "^sizing: File too large .ulimit -f, .*, is 4096.");
}

}  // namespace
}  // namespace switchyard
