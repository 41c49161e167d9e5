// Connections that are opened and then send nothing, or only a part of what opens a conversation.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {

class HalfOpenConnections {
 public:
  // A third of the connections send nothing, a third send a part of HTTP/2's preface, and a third the preface and a
  // part of a frame.
  static absl::StatusOr<HalfOpenConnections> Open(const std::string& address, int count);

  // Waits until the server has closed `count` connections, or the time is up. Returns how many it has closed.
  int WaitUntilClosed(int count, std::chrono::milliseconds timeout);
  int size() const { return static_cast<int>(sockets_.size()); }

 private:
  std::vector<UniqueFd> sockets_;  // a socket is invalid once the server has closed it
  int num_closed_ = 0;
};

}  // namespace switchyard
