#include "base/process/process_start.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace switchyard {
namespace {

// Runs `body` in a process of its own, with the state of this one; returns its exit status.
int InChild(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

sighandler_t ActionOf(int number) {
  struct sigaction action;
  sigaction(number, nullptr, &action);
  return action.sa_handler;
}

bool IsBlocked(int number) {
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  return sigismember(&mask, number) == 1;
}

TEST(PrepareProcess, OpensClosedStandardDescriptors) {
  for (int closed = 1; closed < 8; ++closed) {
    EXPECT_EQ(InChild([closed] {
                for (int fd = 0; fd < 3; ++fd) {
                  if ((closed >> fd & 1) != 0) close(fd);
                }
                PrepareProcess(ProgramKind::kTool);
                const int next = open("/proc/self/exe", O_RDONLY);  // the file that would have got the number
                return next > 2 && write(STDERR_FILENO, "", 0) == 0 ? 0 : 1;
              }),
              0)
        << closed;
  }
}

void MakeSignalsStrange() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  signal(SIGCHLD, SIG_IGN);
}

TEST(PrepareProcess, AServiceCanWaitForChildrenAndOutlivesBrokenPipes) {
  EXPECT_EQ(InChild([] {
              MakeSignalsStrange();
              PrepareProcess(ProgramKind::kService);
              if (ActionOf(SIGCHLD) != SIG_DFL || IsBlocked(SIGTERM) || IsBlocked(SIGCHLD)) return 1;
              for (const int number : {SIGPIPE, SIGXFSZ, SIGHUP, SIGUSR1, SIGUSR2}) {
                if (ActionOf(number) != SIG_IGN) return 2;
              }
              return InChild([] { return 7; }) == 7 ? 0 : 3;
            }),
            0);
}

TEST(PrepareProcess, AToolEndsWithItsReader) {
  EXPECT_EQ(InChild([] {
              MakeSignalsStrange();
              signal(SIGPIPE, SIG_IGN);
              signal(SIGHUP, SIG_IGN);
              PrepareProcess(ProgramKind::kTool);
              const bool user_decides = ActionOf(SIGHUP) == SIG_IGN;
              return ActionOf(SIGPIPE) == SIG_DFL && !IsBlocked(SIGPIPE) && user_decides ? 0 : 1;
            }),
            0);
}

TEST(PrepareProcess, FilesOfAServiceAreItsUsersAlone) {
  const auto mask_after = [](ProgramKind kind, mode_t inherited) {
    return InChild([=] {
      umask(inherited);
      PrepareProcess(kind);
      return static_cast<int>(umask(0));
    });
  };
  EXPECT_EQ(mask_after(ProgramKind::kService, 0), 077);
  EXPECT_EQ(mask_after(ProgramKind::kService, 0277), 077);
  EXPECT_EQ(mask_after(ProgramKind::kTool, 022), 022);
}

TEST(PrepareProcess, ThreadsGetStacksOfTheirOwnSize) {
  EXPECT_EQ(InChild([] {
              rlimit limit;
              getrlimit(RLIMIT_STACK, &limit);
              limit.rlim_cur = 64 << 10;
              setrlimit(RLIMIT_STACK, &limit);
              PrepareProcess(ProgramKind::kService);
              pthread_attr_t attributes;
              size_t bytes = 0;
              pthread_getattr_default_np(&attributes);
              pthread_attr_getstacksize(&attributes, &bytes);
              getrlimit(RLIMIT_STACK, &limit);
              return bytes == 8 << 20 && limit.rlim_cur >= bytes ? 0 : 1;
            }),
            0);
}

TEST(PrepareProcess, TakesEveryDescriptorThatItMay) {
  EXPECT_EQ(InChild([] {
              rlimit limit;
              getrlimit(RLIMIT_NOFILE, &limit);
              limit.rlim_cur = 64;
              setrlimit(RLIMIT_NOFILE, &limit);
              PrepareProcess(ProgramKind::kTool);
              getrlimit(RLIMIT_NOFILE, &limit);
              return limit.rlim_cur == limit.rlim_max ? 0 : 1;
            }),
            0);
}

// A pseudo-terminal that becomes the controlling one of a session of its own, and is then hung up.
int HangUp(bool is_ignored) {
  return InChild([is_ignored] {
    signal(SIGHUP, is_ignored ? SIG_IGN : SIG_DFL);
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0 || setsid() < 0) return 3;
    if (open(ptsname(terminal), O_RDWR) < 0) return 3;
    const Inherited inherited = PrepareProcess(ProgramKind::kService);
    if (!inherited.has_terminal || inherited.HangupMeansEnd()) return 2;  // somebody has sent the signal
    close(terminal);
    return inherited.HangupMeansEnd() ? 1 : 0;
  });
}

TEST(PrepareProcess, AHangupMeansTheEndWhenTheTerminalIsGone) {
  EXPECT_EQ(HangUp(/*is_ignored=*/false), 1);
  EXPECT_EQ(HangUp(/*is_ignored=*/true), 0);
  EXPECT_EQ(InChild([] {
              setsid();  // without a terminal
              return PrepareProcess(ProgramKind::kService).HangupMeansEnd() ? 1 : 0;
            }),
            0);
}

}  // namespace
}  // namespace switchyard
