#include "server/admission.h"

#include "moe/base/clock.h"

namespace switchyard {

namespace {

// Whether `wanted` more fit beside the `held` of everybody, of which the client's own is `own`.
absl::Status CheckBudget(const char* unit, const char* flag, int64_t wanted, int64_t own, int64_t held,
                         int64_t budget) {
  const int64_t free = budget - held - wanted;
  if (free < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("queue full: ", held, " ", unit, " are held, ", wanted, " more exceed ", flag, "=", budget));
  }
  if (own > 0 && (own + wanted) / Admission::kClientFactor > free) {
    return absl::ResourceExhaustedError(absl::StrCat("queue nearly full: this client holds ", own, " of ", held, " ",
                                                     unit, ", ", wanted, " more would leave others only ", free, " of ",
                                                     flag, "=", budget));
  }
  return absl::OkStatus();
}

void Add(int64_t num_rows, int64_t num_bytes, int num_requests, Admission::Held* held) {
  held->rows += num_rows;
  held->bytes += num_bytes;
  held->requests += num_requests;
}

}  // namespace

absl::Status Admission::Admit(const std::string& client, int64_t num_rows, int64_t num_bytes) {
  MutexLock lock(&mu_);
  const auto it = clients_.find(client);
  const Held own = it == clients_.end() ? Held() : it->second;
  SY_RETURN_IF_ERROR(CheckBudget("rows", "--max_queued_rows", num_rows, own.rows, held_.rows, max_rows_));
  SY_RETURN_IF_ERROR(CheckBudget("bytes", "--max_queued_bytes", num_bytes, own.bytes, held_.bytes, max_bytes_));
  Add(num_rows, num_bytes, 1, &held_);
  Add(num_rows, num_bytes, 1, &clients_[client]);
  return absl::OkStatus();
}

void Admission::Release(const std::string& client, int64_t num_rows, int64_t num_bytes) {
  MutexLock lock(&mu_);
  Add(-num_rows, -num_bytes, -1, &held_);
  const auto it = clients_.find(client);
  Add(-num_rows, -num_bytes, -1, &it->second);
  if (it->second.requests == 0) clients_.erase(it);
  if (held_.requests == 0) emptied_.SignalAll();
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
