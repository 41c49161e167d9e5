// Connections that are opened and then say nothing, or half of what opens a conversation.
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
  // A third of them sends nothing, a third a part of HTTP/2's preface, a third the preface and a part of a frame.
  static absl::StatusOr<HalfOpenConnections> Open(const std::string& address, int count);

  // Waits until the server has closed `count` of them, or the time is up; how many it has closed.
  int WaitUntilClosed(int count, std::chrono::milliseconds timeout);
  int size() const { return static_cast<int>(sockets_.size()); }

 private:
  std::vector<UniqueFd> sockets_;  // invalid once the server has closed it
  int num_closed_ = 0;
};

}  // namespace switchyard
