// Limits the rows and bytes that the front holds. Rows are held from arrival to answer, bytes until the answer has been
// sent or dropped, so callers who do not read their answers soon cannot send any more.
//
// A request that exceeds the budget is refused at once, in microseconds, so that overload costs its senders a retry and
// other clients nothing. No client can take the whole budget: a client may hold up to kClientFactor times the part that
// is left free. One client alone thus gets 8/9 of the budget, two clients that ask for everything get 8/17 each, and
// other clients always find some of it free. For a client that holds nothing only the budget itself counts.
//
// Thread-safe. No state is kept of a client that holds nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "base/mutex.h"
#include "base/status.h"

namespace switchyard {

class Admission {
 public:
  Admission(int64_t max_rows, int64_t max_bytes) : max_rows_(max_rows), max_bytes_(max_bytes) {}

  // Fails with ResourceExhausted, naming the budget: with pushback when the request does not fit beside the admitted
  // ones, or its client holds too much of the budget; without pushback when it is larger than the whole budget.
  absl::Status Admit(const std::string& client, int64_t num_rows, int64_t num_bytes);
  // Call each once for an admitted request, in any order: ReleaseRows when it is answered, ReleaseBytes when its answer
  // has been sent or dropped.
  void ReleaseRows(const std::string& client, int64_t num_rows);
  void ReleaseBytes(const std::string& client, int64_t num_bytes);
  // Releases both.
  void Release(const std::string& client, int64_t num_rows, int64_t num_bytes);

  struct Held {
    int64_t rows = 0;
    int64_t bytes = 0;
    int64_t requests = 0;
  };
  Held held() const;

  // Waits until every request is answered. Returns false when `timeout` passes first.
  bool WaitUntilEmpty(std::chrono::milliseconds timeout) const;

  static constexpr int64_t kClientFactor = 8;

 private:
  void Subtract(const std::string& client, const Held& less) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t max_rows_;
  const int64_t max_bytes_;
  mutable Mutex mu_;
  mutable CondVar emptied_;
  Held held_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, Held> clients_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
