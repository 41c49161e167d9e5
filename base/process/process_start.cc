#include "base/process/process_start.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <initializer_list>

namespace switchyard {
namespace {

constexpr rlim_t kStackBytes = rlim_t{8} << 20;

// The lowest free number is taken, so going upwards fills every gap. Sanitizers watch calls of the C library, and are
// not ready yet when this runs first, so it makes the system calls itself.
void OpenStandardDescriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (syscall(SYS_fcntl, fd, F_GETFD) >= 0) continue;
    // In a root folder without devices the number is taken by the folder itself, which nothing can be written to.
    if (syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR) < 0) syscall(SYS_openat, AT_FDCWD, "/", O_PATH);
  }
}

// The loader calls this even before the constructors of shared libraries, some of which open descriptors.
[[gnu::section(".preinit_array"), gnu::used]] void (*const before_libraries)() = OpenStandardDescriptors;

void SetActions(std::initializer_list<int> signals, sighandler_t action) {
  for (const int number : signals) signal(number, action);
}

void PrepareSignals(ProgramKind kind) {
  SetActions({SIGCHLD}, SIG_DFL);
  if (kind == ProgramKind::kService) {
    SetActions({SIGPIPE, SIGXFSZ, SIGHUP, SIGUSR1, SIGUSR2}, SIG_IGN);
  } else {
    SetActions({SIGPIPE}, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, nullptr);
}

void RaiseLimit(__rlimit_resource resource, rlim_t wanted) {
  rlimit limit;
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  setrlimit(resource, &limit);
}

// glibc takes the soft limit of the stack for the size of every thread's.
void SetStackSize() {
  RaiseLimit(RLIMIT_STACK, kStackBytes);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_setattr_default_np(&attributes);
  pthread_attr_destroy(&attributes);
}

bool HasTerminal() {
  const int fd = open("/dev/tty", O_RDONLY | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return false;
  close(fd);
  return true;
}

bool IsIgnored(int number) {
  struct sigaction action;
  return sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace

bool Inherited::HangupMeansEnd() const { return has_terminal && !ignores_hangup && !HasTerminal(); }

Inherited PrepareProcess(ProgramKind kind) {
  OpenStandardDescriptors();
  const Inherited inherited = {.ignores_hangup = IsIgnored(SIGHUP), .has_terminal = HasTerminal()};
  PrepareSignals(kind);
  SetStackSize();
  // Each connection takes a descriptor. With the usual soft limit of 1024, idle connections would keep others out.
  RaiseLimit(RLIMIT_NOFILE, RLIM_INFINITY);
  if (kind == ProgramKind::kService) umask(S_IRWXG | S_IRWXO);
  return inherited;
}

}  // namespace switchyard
