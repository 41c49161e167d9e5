#include "base/process/bounded_write.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/unique_fd.h"

namespace switchyard {

void KeepFromBlocking(int fd) {
  struct stat kind = {};
  if (fstat(fd, &kind) != 0) return;
  const bool is_terminal = isatty(fd) == 1;
  if (!is_terminal && !S_ISFIFO(kind.st_mode) && !S_ISSOCK(kind.st_mode)) return;
  const std::string path = absl::StrCat("/proc/self/fd/", fd);
  const UniqueFd own(open(path.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (own.valid()) {
    dup2(own.get(), fd);
  } else if (!is_terminal) {
    // A socket, or a pipe of another user. The shell that shares a terminal would trip over this flag; a process that
    // shares a pipe or a socket for its log hardly does.
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  }
}

WriteOutcome WriteWithin(int fd, std::string_view text, std::chrono::milliseconds patience) {
  return WriteSome(fd, patience, &text);
}

WriteOutcome WriteSome(int fd, std::chrono::milliseconds patience, std::string_view* rest) {
  const SteadyTime end = Clock::Real().Now() + patience;
  while (!rest->empty()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::Real().Now());
    pollfd polled = {fd, POLLOUT, 0};
    const int ready = poll(&polled, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
    if (ready == 0) return WriteOutcome::kTimedOut;
    if (ready < 0 && errno != EINTR) return WriteOutcome::kFailed;
    if (ready < 0) continue;
    const ssize_t count = write(fd, rest->data(), rest->size());
    if (count >= 0) {
      rest->remove_prefix(static_cast<size_t>(count));
    } else if (errno == EAGAIN) {
      // poll() reports a pipe as writable that has room, but not enough for a line in one piece.
      if (left.count() <= 0) return WriteOutcome::kTimedOut;
      poll(nullptr, 0, 1);
    } else if (errno != EINTR) {
      return WriteOutcome::kFailed;
    }
  }
  return WriteOutcome::kWritten;
}

}  // namespace switchyard
