#include "server/requests/admission.h"

#include "base/clock.h"
#include "server/requests/pushback.h"

namespace switchyard {

namespace {

absl::Status CheckEverFits(const char* unit, const char* flag, int64_t wanted, int64_t budget) {
  if (wanted <= budget) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(wanted, " ", unit, " in one request never fit ", flag, "=", budget, ": send fewer at a time"));
}

// Checks whether `wanted` more units fit. All clients together hold `held` units; the client itself holds `own` of
// them.
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

}  // namespace

absl::Status Admission::Admit(const std::string& client, int64_t num_rows, int64_t num_bytes) {
  SY_RETURN_IF_ERROR(CheckEverFits("rows", "--max_queued_rows", num_rows, max_rows_));
  SY_RETURN_IF_ERROR(CheckEverFits("bytes", "--max_queued_bytes", num_bytes, max_bytes_));
  MutexLock lock(&mu_);
  const auto it = clients_.find(client);
  const Held own = it == clients_.end() ? Held() : it->second;
  absl::Status fits = CheckBudget("rows", "--max_queued_rows", num_rows, own.rows, held_.rows, max_rows_);
  fits.Update(CheckBudget("bytes", "--max_queued_bytes", num_bytes, own.bytes, held_.bytes, max_bytes_));
  if (!fits.ok()) return WithPushback(fits);
  for (Held* held : {&held_, &clients_[client]}) {
    held->rows += num_rows;
    held->bytes += num_bytes;
    ++held->requests;
  }
  return absl::OkStatus();
}

void Admission::ReleaseRows(const std::string& client, int64_t num_rows) {
  MutexLock lock(&mu_);
  Subtract(client, {.rows = num_rows, .requests = 1});
}

void Admission::ReleaseBytes(const std::string& client, int64_t num_bytes) {
  MutexLock lock(&mu_);
  Subtract(client, {.bytes = num_bytes});
}

void Admission::Release(const std::string& client, int64_t num_rows, int64_t num_bytes) {
  MutexLock lock(&mu_);
  Subtract(client, {num_rows, num_bytes, 1});
}

void Admission::Subtract(const std::string& client, const Held& less) {
  const auto it = clients_.find(client);
  for (Held* held : {&held_, &it->second}) {
    held->rows -= less.rows;
    held->bytes -= less.bytes;
    held->requests -= less.requests;
  }
  if (it->second.requests == 0 && it->second.bytes == 0) clients_.erase(it);
  if (held_.requests == 0) emptied_.SignalAll();
}

bool Admission::WaitUntilEmpty(std::chrono::milliseconds timeout) const {
  const SteadyTime deadline = Clock::Real().Now() + timeout;
  MutexLock lock(&mu_);
  while (held_.requests > 0) {
    if (emptied_.WaitUntil(&mu_, deadline)) return held_.requests == 0;
  }
  return true;
}

Admission::Held Admission::held() const {
  MutexLock lock(&mu_);
  return held_;
}

}  // namespace switchyard
