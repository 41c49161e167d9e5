#include "base/unique_fd.h"

#include <unistd.h>

namespace switchyard {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) close(fd_);
  fd_ = fd;
}

absl::Status ErrnoStatus(int error_number, absl::string_view what) { return absl::ErrnoToStatus(error_number, what); }

}  // namespace switchyard
