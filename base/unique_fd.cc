#include "base/unique_fd.h"

#include <unistd.h>

#include "base/process/exhausted.h"

namespace switchyard {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) close(fd_);
  fd_ = fd;
}

absl::Status ErrnoStatus(int error_number, absl::string_view what) {
  return absl::Status(absl::ErrnoToStatusCode(error_number), absl::StrCat(what, ": ", DescribeErrno(error_number)));
}

}  // namespace switchyard
