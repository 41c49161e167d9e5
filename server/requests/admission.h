// Bounds what the front holds: rows from arrival to answer, bytes until the answer has been sent or dropped, so that
// callers who do not read what they asked for soon get no more.
//
// Beyond the budget a request is refused at once, in microseconds, so that overload costs its senders a retry and
// nobody else anything. No client takes the whole budget: it may hold up to kClientFactor times what is left free, so
// one alone gets 8/9 of it, two that ask for all 8/17 each, and others always find some free. A client that holds
// nothing is bound by the budget alone.
//
// Thread-safe. There is nothing left of a client that holds nothing.
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

  // ResourceExhausted, naming the budget: with pushback when the request does not fit beside those admitted, or its
  // client holds too much of it; without when it is larger than the whole budget.
  absl::Status Admit(const std::string& client, int64_t num_rows, int64_t num_bytes);
  // Each once for a request that was admitted, in any order: it is answered, and its answer's bytes are gone.
  void ReleaseRows(const std::string& client, int64_t num_rows);
  void ReleaseBytes(const std::string& client, int64_t num_bytes);
  // Both.
  void Release(const std::string& client, int64_t num_rows, int64_t num_bytes);

  struct Held {
    int64_t rows = 0;
    int64_t bytes = 0;
    int64_t requests = 0;
  };
  Held held() const;

  // Waits until every request is answered; false when `timeout` passed first.
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
