#include "server/admission.h"

#include "moe/base/clock.h"

namespace switchyard {

absl::Status Admission::Admit(int64_t num_rows, int64_t num_bytes) {
  MutexLock lock(&mu_);
  if (num_rows > max_rows_ - held_.rows) {
    return absl::ResourceExhaustedError(absl::StrCat("queue full: ", held_.rows, " rows are held, ", num_rows,
                                                     " more exceed --max_queued_rows=", max_rows_));
  }
  if (num_bytes > max_bytes_ - held_.bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("queue full: ", held_.bytes, " bytes are held, ", num_bytes,
                                                     " more exceed --max_queued_bytes=", max_bytes_));
  }
  held_.rows += num_rows;
  held_.bytes += num_bytes;
  ++held_.requests;
  return absl::OkStatus();
}

void Admission::Release(int64_t num_rows, int64_t num_bytes) {
  MutexLock lock(&mu_);
  held_.rows -= num_rows;
  held_.bytes -= num_bytes;
  if (--held_.requests == 0) emptied_.SignalAll();
}

bool Admission::WaitUntilEmpty(std::chrono::milliseconds timeout) const {
  const SteadyTime deadline = Clock::Real().Now() + timeout;
  MutexLock lock(&mu_);
  while (held_.requests > 0) {
    const SteadyTime now = Clock::Real().Now();
    if (now >= deadline) return false;
    emptied_.WaitWithTimeout(&mu_, absl::FromChrono(deadline - now));
  }
  return true;
}

Admission::Held Admission::held() const {
  MutexLock lock(&mu_);
  return held_;
}

}  // namespace switchyard
