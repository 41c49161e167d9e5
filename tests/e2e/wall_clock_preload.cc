// A wall clock that a test can set while a program runs.
//
//   LD_PRELOAD=libwall_clock.so SWITCHYARD_TEST_WALL_CLOCK=FILE program
//
// FILE begins with an int64_t: the seconds by which the program's wall clock is ahead of the kernel's. A test may write
// another number there at any time; that sets the clock, in the program and in its children.
//
// Waits until a time of the wall clock, also those that abseil makes with the system call futex, end when this clock
// reaches that time, as the kernel's waits do after clock_settime. So a wait that is in progress when the clock is set
// ends earlier or later, too. Waits for a while, and those by CLOCK_MONOTONIC, are the kernel's own.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <iterator>

namespace {

constexpr int64_t kNanosPerSecond = 1'000'000'000;
constexpr int64_t kLookNanos = 10'000'000;  // from one look at the clock to the next

std::atomic<const volatile int64_t*> ahead_seconds{nullptr};

__attribute__((constructor)) void OpenFile() {
  const char* path = getenv("SWITCHYARD_TEST_WALL_CLOCK");
  const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  void* mapped = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (mapped != MAP_FAILED) ahead_seconds.store(static_cast<const int64_t*>(mapped));
}

int64_t AheadSeconds() {
  const volatile int64_t* seconds = ahead_seconds.load(std::memory_order_relaxed);
  return seconds == nullptr ? 0 : *seconds;
}

// The function that this library hides. `cached` is the caller's own, and needs no guard that might call back here.
template <typename Function>
Function* Hidden(std::atomic<Function*>& cached, const char* name) {
  Function* found = cached.load(std::memory_order_relaxed);
  if (found == nullptr) {
    found = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
    cached.store(found, std::memory_order_relaxed);
  }
  return found;
}

int KernelGetTime(clockid_t clock, timespec* time) {
  static constinit std::atomic<int (*)(clockid_t, timespec*)> cached{nullptr};
  return Hidden<int(clockid_t, timespec*)>(cached, "clock_gettime")(clock, time);
}

int64_t Nanos(const timespec& time) { return time.tv_sec * kNanosPerSecond + time.tv_nsec; }

int64_t KernelNanos() {
  timespec now;
  KernelGetTime(CLOCK_REALTIME, &now);
  return Nanos(now);
}

int64_t WallNanos() { return KernelNanos() + AheadSeconds() * kNanosPerSecond; }

// Waits until this wall clock reaches `deadline`, in slices: `wait` waits until a time of the kernel's wall clock, and
// returns an error number or 0. `may_miss` says whether a signal may have come between two slices.
template <typename Wait, typename MayMiss>
int WaitUntil(const timespec& deadline, const Wait& wait, const MayMiss& may_miss) {
  while (true) {
    const int64_t left = Nanos(deadline) - WallNanos();
    const int64_t until = KernelNanos() + std::clamp<int64_t>(left, 0, kLookNanos);
    const timespec slice = {until / kNanosPerSecond, until % kNanosPerSecond};
    const int error = wait(&slice);
    if (error != ETIMEDOUT || WallNanos() >= Nanos(deadline)) return error;
    if (may_miss()) return 0;
  }
}

// How often condition variables were signalled, by their addresses' hashes.
constinit std::atomic<uint64_t> signals[256];

std::atomic<uint64_t>& SignalsOf(const pthread_cond_t* cond) {
  return signals[reinterpret_cast<uintptr_t>(cond) / alignof(pthread_cond_t) % std::size(signals)];
}

int KernelCondClockWait(pthread_cond_t* cond, pthread_mutex_t* mutex, clockid_t clock, const timespec* deadline) {
  using Function = int(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*);
  static constinit std::atomic<Function*> cached{nullptr};
  return Hidden<Function>(cached, "pthread_cond_clockwait")(cond, mutex, clock, deadline);
}

// glibc's mark of a condition variable that pthread_condattr_setclock gave the monotonic clock.
bool IsMonotonic(const pthread_cond_t* cond) { return (cond->__data.__wrefs & 2) != 0; }

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const int result = KernelGetTime(clock, time);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) time->tv_sec += AheadSeconds();
  return result;
}

int gettimeofday(timeval* time, void*) noexcept {
  const int64_t now = WallNanos();
  *time = {now / kNanosPerSecond, now % kNanosPerSecond / 1000};
  return 0;
}

time_t time(time_t* seconds) noexcept {
  const time_t now = WallNanos() / kNanosPerSecond;
  if (seconds != nullptr) *seconds = now;
  return now;
}

int pthread_cond_clockwait(pthread_cond_t* cond, pthread_mutex_t* mutex, clockid_t clock, const timespec* deadline) {
  if (clock != CLOCK_REALTIME) return KernelCondClockWait(cond, mutex, clock, deadline);
  // The caller holds the mutex, so it has seen what was signalled before.
  const std::atomic<uint64_t>& signals_now = SignalsOf(cond);
  const uint64_t signals_before = signals_now.load();
  return WaitUntil(
      *deadline, [&](const timespec* slice) { return KernelCondClockWait(cond, mutex, CLOCK_REALTIME, slice); },
      [&] { return signals_now.load() != signals_before; });
}

int pthread_cond_timedwait(pthread_cond_t* cond, pthread_mutex_t* mutex, const timespec* deadline) {
  return pthread_cond_clockwait(cond, mutex, IsMonotonic(cond) ? CLOCK_MONOTONIC : CLOCK_REALTIME, deadline);
}

int pthread_cond_signal(pthread_cond_t* cond) noexcept {
  static constinit std::atomic<int (*)(pthread_cond_t*)> cached{nullptr};
  ++SignalsOf(cond);
  return Hidden<int(pthread_cond_t*)>(cached, "pthread_cond_signal")(cond);
}

int pthread_cond_broadcast(pthread_cond_t* cond) noexcept {
  static constinit std::atomic<int (*)(pthread_cond_t*)> cached{nullptr};
  ++SignalsOf(cond);
  return Hidden<int(pthread_cond_t*)>(cached, "pthread_cond_broadcast")(cond);
}

// NOLINTBEGIN(google-runtime-int): the C library's own types.
long syscall(long number, ...) noexcept {
  using Function = long(long, long, long, long, long, long, long);
  static constinit std::atomic<Function*> cached{nullptr};
  long arguments[6];
  va_list list;
  va_start(list, number);
  for (long& argument : arguments) argument = va_arg(list, long);
  va_end(list);
  const auto kernel = [&](const timespec* deadline) {
    return Hidden<Function>(cached, "syscall")(number, arguments[0], arguments[1], arguments[2],
                                               reinterpret_cast<long>(deadline), arguments[4], arguments[5]);
  };
  const auto* const deadline = reinterpret_cast<const timespec*>(arguments[3]);
  constexpr long kWallWait = FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME;
  const bool waits = number == SYS_futex && (arguments[1] & ~FUTEX_PRIVATE_FLAG) == kWallWait && deadline != nullptr;
  if (!waits) return kernel(deadline);
  // A futex that was woken between two slices has another value, and the kernel says so.
  const int error = WaitUntil(
      *deadline, [&](const timespec* slice) { return kernel(slice) == 0 ? 0 : errno; }, [] { return false; });
  if (error == 0) return 0;
  errno = error;
  return -1;
}
// NOLINTEND(google-runtime-int)

}  // extern "C"
