// Callers that ask and never read the answer: HTTP/2 with a flow control window of zero, so that the server has to keep
// it.
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
  std::vector<UniqueFd> sockets_;  // they hang up with this object
};

}  // namespace switchyard
