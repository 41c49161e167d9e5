#include "tests/load/half_open.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "moe/base/clock.h"

namespace switchyard {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr std::string_view kHalfFrame("\0\0\x0c\x04\0", 5);  // of a SETTINGS frame with two entries

absl::StatusOr<UniqueFd> Connect(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + colon + 1)));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) return ErrnoStatus(errno, "connect");
  return fd;
}

// What the connection says before it falls silent.
std::string Words(int number) {
  switch (number % 3) {
    case 0:
      return "";
    case 1:
      return std::string(kPreface.substr(0, 1 + number % (kPreface.size() - 1)));
    default:
      return std::string(kPreface) + std::string(kHalfFrame);
  }
}

// Reads what has come; true when that was the end.
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
    SY_ASSIGN_OR_RETURN(UniqueFd fd, Connect(address));
    const std::string words = Words(number);
    if (!words.empty() && send(fd.get(), words.data(), words.size(), MSG_NOSIGNAL) < 0)
      return ErrnoStatus(errno, "send");
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
