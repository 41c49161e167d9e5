#include "tests/e2e/checked_load.h"

#include <unistd.h>

#include <random>
#include <utility>

#include "base/clock.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"

namespace switchyard {
namespace {

constexpr int kNumLayers = 4;

}  // namespace

CheckedLoad::CheckedLoad(Client* client, const std::string& jargon_moe, int num_callers) : client_(client) {
  for (int layer = 0; layer < kNumLayers; ++layer) {
    const auto tensor = [&](const char* what) {
      const std::string key = absl::StrCat("model.layers.", layer, ".mlp.", what);
      return LoadMatrix({jargon_moe + "/golden.safetensors", key}).value();
    };
    inputs_.push_back(tensor("input"));
    outputs_.push_back(tensor("output"));
  }
  for (int caller = 0; caller < num_callers; ++caller) {
    callers_.emplace_back([this, caller] { Run(caller); });
  }
}

void CheckedLoad::Stop() {
  stop_.store(true);
  for (std::thread& caller : callers_) caller.join();
  callers_.clear();
}

void CheckedLoad::WaitForAnswers(int64_t num_more) const {
  const int64_t enough = answered() + num_more;
  while (answered() < enough && failed() == 0) usleep(1000);
}

std::string CheckedLoad::first_failure() const {
  MutexLock lock(&mu_);
  return first_failure_;
}

void CheckedLoad::Run(int caller) {
  std::mt19937 random(caller);
  while (!stop_.load()) {
    const int layer = static_cast<int>(random() % kNumLayers);
    const int64_t first_row = random() % 400, num_rows = 1 + random() % 100;
    CallOnce(layer, first_row, num_rows);
  }
}

void CheckedLoad::CallOnce(int layer, int64_t first_row, int64_t num_rows) {
  const SteadyTime begin = Clock::Real().Now();
  const auto result = client_->Forward({.model = "m",
                                        .layer = std::to_string(layer),
                                        .rows = std::as_const(inputs_[layer]).view().Rows(first_row, num_rows)});
  const int64_t took_us = MicrosBetween(begin, Clock::Real().Now());
  for (int64_t longest = longest_us_; took_us > longest && !longest_us_.compare_exchange_weak(longest, took_us);) {
  }
  if (!result.ok()) return RecordFailure(result.status());
  const auto expected = std::as_const(outputs_[layer]).view().Rows(first_row, num_rows);
  if (!Compare(result->rows.view(), expected, {1e-4, 1e-5}).within_tolerance()) ++wrong_;
  ++answered_;
}

void CheckedLoad::RecordFailure(const absl::Status& status) {
  MutexLock lock(&mu_);
  if (failed_++ == 0) first_failure_ = status.ToString();
}

}  // namespace switchyard
