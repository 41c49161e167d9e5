// Callers that send requests and never read the answers: their HTTP/2 flow control window is zero, so the server has to
// keep the answers.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {

class StalledReaders {
 public:
  // Sends `message`, of at most 60 KiB, to `method` on `count` connections.
  static absl::StatusOr<StalledReaders> Start(const std::string& address, const std::string& method,
                                              const std::string& message, int count);

 private:
  std::vector<UniqueFd> sockets_;  // closed with this object
};

}  // namespace switchyard
