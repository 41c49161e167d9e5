// Owns one file descriptor and closes it. Move-only; not thread-safe.
#pragma once

#include <utility>

#include "base/status.h"

namespace switchyard {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

// The status for a failed system call: `what` and the text of `error_number` (errno), with the limit that
// it may come from (base/process/exhausted.h).
absl::Status ErrnoStatus(int error_number, absl::string_view what);

}  // namespace switchyard
