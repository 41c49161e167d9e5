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

// Checks whether `wanted` more units fit. All clients together hold `held` units; `who` asks, and holds `own` of them.
absl::Status CheckBudget(const char* unit, const char* flag, const char* who, int64_t wanted, int64_t own, int64_t held,
                         int64_t budget) {
  const int64_t free = budget - held - wanted;
  if (free < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("queue full: ", held, " ", unit, " are held, ", wanted, " more exceed ", flag, "=", budget));
  }
  if (own > 0 && (own + wanted) / Admission::kClientFactor > free) {
    return absl::ResourceExhaustedError(absl::StrCat("queue nearly full: this ", who, " holds ", own, " of ", held, " ",
                                                     unit, ", ", wanted, " more would leave others only ", free, " of ",
                                                     flag, "=", budget));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Admission::CheckFits(const char* who, const Table& table, const std::string& name, int64_t num_rows,
                                  int64_t num_bytes) const {
  const auto it = table.find(name);
  const Held own = it == table.end() ? Held() : it->second;
  absl::Status fits = CheckBudget("rows", "--max_queued_rows", who, num_rows, own.rows, held_.rows, max_rows_);
  fits.Update(CheckBudget("bytes", "--max_queued_bytes", who, num_bytes, own.bytes, held_.bytes, max_bytes_));
  return fits;
}

absl::Status Admission::Admit(const Holder& holder, int64_t num_rows, int64_t num_bytes) {
  SY_RETURN_IF_ERROR(CheckEverFits("rows", "--max_queued_rows", num_rows, max_rows_));
  SY_RETURN_IF_ERROR(CheckEverFits("bytes", "--max_queued_bytes", num_bytes, max_bytes_));
  MutexLock lock(&mu_);
  const bool has_id = !holder.client_id.empty();
  absl::Status fits = has_id ? CheckFits("client", clients_, holder.client_id, num_rows, num_bytes) : absl::OkStatus();
  fits.Update(CheckFits(has_id ? "sender" : "client", senders_, holder.sender, num_rows, num_bytes));
  if (!fits.ok()) return WithPushback(fits);
  const auto add = [&](Held* held) {
    held->rows += num_rows;
    held->bytes += num_bytes;
    ++held->requests;
  };
  add(&held_);
  add(&senders_[holder.sender]);
  if (has_id) add(&clients_[holder.client_id]);
  return absl::OkStatus();
}

void Admission::ReleaseRows(const Holder& holder, int64_t num_rows) {
  MutexLock lock(&mu_);
  Subtract(holder, {.rows = num_rows, .requests = 1});
}

void Admission::ReleaseBytes(const Holder& holder, int64_t num_bytes) {
  MutexLock lock(&mu_);
  Subtract(holder, {.bytes = num_bytes});
}

void Admission::Release(const Holder& holder, int64_t num_rows, int64_t num_bytes) {
  MutexLock lock(&mu_);
  Subtract(holder, {num_rows, num_bytes, 1});
}

void Admission::Subtract(const Holder& holder, const Held& less) {
  const auto subtract_from = [&](Held* held) {
    held->rows -= less.rows;
    held->bytes -= less.bytes;
    held->requests -= less.requests;
    return held->requests == 0 && held->bytes == 0;
  };
  const auto subtract_of = [&](Table* table, const std::string& name) {
    const auto it = table->find(name);
    if (subtract_from(&it->second)) table->erase(it);
  };
  subtract_from(&held_);
  subtract_of(&senders_, holder.sender);
  if (!holder.client_id.empty()) subtract_of(&clients_, holder.client_id);
  if (held_.requests == 0 || held_.bytes == 0) emptied_.SignalAll();
}

bool Admission::WaitUntilEmpty(std::chrono::milliseconds timeout) const {
  return WaitUntilNone(&Held::requests, timeout);
}

bool Admission::WaitUntilSent(std::chrono::milliseconds timeout) const { return WaitUntilNone(&Held::bytes, timeout); }

bool Admission::WaitUntilNone(int64_t Held::*what, std::chrono::milliseconds timeout) const {
  const SteadyTime deadline = Clock::Real().Now() + timeout;
  MutexLock lock(&mu_);
  while (held_.*what > 0) {
    if (emptied_.WaitUntil(&mu_, deadline)) return held_.*what == 0;
  }
  return true;
}

Admission::Held Admission::held() const {
  MutexLock lock(&mu_);
  return held_;
}

}  // namespace switchyard
