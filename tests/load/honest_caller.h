// A caller that behaves: small requests at a steady pace, each answer compared with the expected one. Storms are judged
// by their effect on this caller.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/mutex.h"
#include "cli/histogram.h"
#include "cli/tensor_io.h"
#include "tests/e2e/server_process.h"

namespace switchyard {

struct HonestWork {
  std::string model;
  std::string layer;
  HostMatrix rows;
  HostMatrix expected;
};

// Rows of a golden layer.
HonestWork GoldenWork(const std::string& model, const std::string& checkpoint, int layer, int64_t num_rows);
// Random rows, with the answer that the undisturbed server gives to them.
absl::StatusOr<HonestWork> ObservedWork(const ServerProcess& server, const std::string& model, const std::string& layer,
                                        int64_t num_rows, int64_t hidden_dim);

struct HonestReport {
  LatencyHistogram latency;  // of the answers, from when the request was due; includes retries after pushback
  int64_t answered = 0;
  int64_t failed = 0;  // despite retries; each try may take a minute
  int64_t wrong = 0;
  int64_t retries = 0;  // after RESOURCE_EXHAUSTED
  std::string first_failure;

  double P99Ms() const { return std::chrono::duration<double, std::milli>(latency.Percentile(99)).count(); }
  double P50Ms() const { return std::chrono::duration<double, std::milli>(latency.Percentile(50)).count(); }
};

// Makes calls from its construction until its destruction. Thread-safe.
class HonestCaller {
 public:
  // `work` must outlive this object.
  HonestCaller(const ServerProcess& server, const HonestWork& work, std::chrono::milliseconds period);
  ~HonestCaller();

  // The results since the last Take.
  HonestReport Take();
  // Waits for `count` more answers or failures.
  void WaitForCalls(int64_t count);

 private:
  void Run(std::chrono::milliseconds period);
  void CallOnce(SteadyTime due);

  const HonestWork& work_;
  const std::unique_ptr<Client> client_;
  std::atomic<bool> stop_{false};
  Mutex mu_;
  CondVar called_;
  int64_t num_calls_ ABSL_GUARDED_BY(mu_) = 0;
  HonestReport report_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace switchyard
