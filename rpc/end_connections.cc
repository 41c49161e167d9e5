#include "rpc/end_connections.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grpc/support/log.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

// This process's sockets at `port`, as descriptors of their own: gRPC may close its descriptors at any time, and their
// numbers may come to mean other files.
std::vector<UniqueFd> SocketsAt(int port) {
  std::vector<UniqueFd> sockets;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    int fd = -1;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &fd)) continue;
    UniqueFd own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    if (!own.valid() || getsockname(own.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) continue;
    const bool is_ip = address.ss_family == AF_INET || address.ss_family == AF_INET6;
    // Both families have the port at the same place.
    if (is_ip && ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port) == port) {
      sockets.push_back(std::move(own));
    }
  }
  return sockets;
}

}  // namespace

void EndConnections(int port) {
  // gRPC would log why each connection has ended.
  gpr_set_log_verbosity(static_cast<gpr_log_severity>(GPR_LOG_SEVERITY_ERROR + 1));
  for (const UniqueFd& socket : SocketsAt(port)) shutdown(socket.get(), SHUT_WR);
}

}  // namespace switchyard
