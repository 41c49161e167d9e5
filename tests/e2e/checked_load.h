// Load on a running front, every answer of which is checked.
//
// Callers send random rows of random layers of one checkpoint, each caller one request after the other, and compare the
// answers with the recorded ones.
//
// Thread-safety: used by one thread; the counts may be read by any.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/tensor/buffer.h"
#include "client/client.h"

namespace switchyard {

class CheckedLoad {
 public:
  // The client's front serves the checkpoint folder `jargon_moe` as the model "m". The callers share the client, which
  // outlives the load.
  CheckedLoad(Client* client, const std::string& jargon_moe, int num_callers);
  ~CheckedLoad() { Stop(); }

  // Waits for the calls in flight.
  void Stop();
  // Waits until so many more calls are answered.
  void WaitForAnswers(int64_t num_more) const;

  int64_t answered() const { return answered_.load(); }
  int64_t failed() const { return failed_.load(); }
  int64_t wrong() const { return wrong_.load(); }
  // The time that the longest call took which has ended since the last TakeLongestUs.
  int64_t TakeLongestUs() { return longest_us_.exchange(0); }
  // The status of the first call that failed.
  std::string first_failure() const;

 private:
  void Run(int caller);
  void CallOnce(int layer, int64_t first_row, int64_t num_rows);
  void RecordFailure(const absl::Status& status);

  Client* const client_;
  std::vector<HostMatrix> inputs_, outputs_;  // by layer
  std::vector<std::thread> callers_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> answered_{0}, failed_{0}, wrong_{0}, longest_us_{0};
  mutable Mutex mu_;
  std::string first_failure_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
