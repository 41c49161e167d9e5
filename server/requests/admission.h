// Limits the rows and bytes that the front holds. Rows are held from arrival to answer, bytes until the answer has been
// sent or dropped, so callers who do not read their answers soon cannot send any more.
//
// A request that exceeds the budget is refused at once, in microseconds, so that overload costs its senders a retry and
// other clients nothing. No client can take the whole budget: a client may hold up to kClientFactor times the part that
// is left free. One client alone thus gets 8/9 of the budget, two clients that ask for everything get 8/17 each, and
// other clients always find some of it free. For a client that holds nothing only the budget itself counts.
//
// Senders name their clients themselves, so the same bound holds for each sender, however many clients it names.
//
// Thread-safe. No state is kept of a client or sender that holds nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "base/mutex.h"
#include "base/status.h"

namespace switchyard {

// Whom a request counts for.
struct Holder {
  std::string sender;     // an identity that was proven, or a connection
  std::string client_id;  // as the sender says; empty when it names none
};

class Admission {
 public:
  Admission(int64_t max_rows, int64_t max_bytes) : max_rows_(max_rows), max_bytes_(max_bytes) {}

  // Fails with ResourceExhausted, naming the budget: with pushback when the request does not fit beside the admitted
  // ones, or its client holds too much of the budget; without pushback when it is larger than the whole budget.
  absl::Status Admit(const Holder& holder, int64_t num_rows, int64_t num_bytes);
  // Call each once for an admitted request, in any order: ReleaseRows when it is answered, ReleaseBytes when its answer
  // has been sent or dropped.
  void ReleaseRows(const Holder& holder, int64_t num_rows);
  void ReleaseBytes(const Holder& holder, int64_t num_bytes);
  // Releases both.
  void Release(const Holder& holder, int64_t num_rows, int64_t num_bytes);

  struct Held {
    int64_t rows = 0;
    int64_t bytes = 0;
    int64_t requests = 0;
  };
  Held held() const;

  // Waits until every request is answered. Returns false when `timeout` passes first.
  bool WaitUntilEmpty(std::chrono::milliseconds timeout) const;
  // Waits until every answer has been sent or dropped, likewise.
  bool WaitUntilSent(std::chrono::milliseconds timeout) const;

  static constexpr int64_t kClientFactor = 8;

 private:
  bool WaitUntilNone(int64_t Held::*what, std::chrono::milliseconds timeout) const;
  using Table = absl::flat_hash_map<std::string, Held>;

  absl::Status CheckFits(const char* who, const Table& table, const std::string& name, int64_t num_rows,
                         int64_t num_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Subtract(const Holder& holder, const Held& less) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t max_rows_;
  const int64_t max_bytes_;
  mutable Mutex mu_;
  mutable CondVar emptied_;
  Held held_ ABSL_GUARDED_BY(mu_);
  Table senders_ ABSL_GUARDED_BY(mu_);
  Table clients_ ABSL_GUARDED_BY(mu_);  // those with an id
};

}  // namespace switchyard
