#include "tests/load/half_open.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <string_view>

#include "base/clock.h"
#include "tests/load/tcp.h"

namespace switchyard {
namespace {

constexpr std::string_view kHalfFrame("\0\0\x0c\x04\0", 5);  // the beginning of a SETTINGS frame with two entries

// The bytes that the connection sends before it falls silent.
std::string Words(int number) {
  switch (number % 3) {
    case 0:
      return "";
    case 1:
      return std::string(kHttp2Preface.substr(0, 1 + number % (kHttp2Preface.size() - 1)));
    default:
      return std::string(kHttp2Preface) + std::string(kHalfFrame);
  }
}

// Reads the bytes that have come; true when the connection has ended.
bool HasEnded(int socket) {
  char bytes[1024];
  while (true) {
    const ssize_t count = recv(socket, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (count > 0) continue;
    return count == 0 || (errno != EAGAIN && errno != EINTR);
  }
}

}  // namespace

absl::StatusOr<HalfOpenConnections> HalfOpenConnections::Open(const std::string& address, int count) {
  HalfOpenConnections connections;
  for (int number = 0; number < count; ++number) {
    SY_ASSIGN_OR_RETURN(UniqueFd fd, ConnectTcp(address));
    SY_RETURN_IF_ERROR(SendAll(fd.get(), Words(number)));
    connections.sockets_.push_back(std::move(fd));
  }
  return connections;
}

int HalfOpenConnections::WaitUntilClosed(int count, std::chrono::milliseconds timeout) {
  const SteadyTime end = Clock::Real().Now() + timeout;
  while (num_closed_ < count && Clock::Real().Now() < end) {
    std::vector<pollfd> polled;
    for (const UniqueFd& fd : sockets_) {
      if (fd.valid()) polled.push_back({fd.get(), POLLIN, 0});
    }
    poll(polled.data(), polled.size(), 100);
    for (UniqueFd& fd : sockets_) {
      if (!fd.valid() || !HasEnded(fd.get())) continue;
      fd.reset();
      ++num_closed_;
    }
  }
  return num_closed_;
}

}  // namespace switchyard
