#include "tests/e2e/checked_load.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <random>
#include <utility>

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

void CheckedLoad::Run(int caller) {
  std::mt19937 random(caller);
  while (!stop_.load()) {
    const int layer = random() % kNumLayers;
    const int64_t begin = random() % 400, count = 1 + random() % 100;
    const auto result = client_->Forward({.model = "m",
                                          .layer = std::to_string(layer),
                                          .rows = std::as_const(inputs_[layer]).view().Rows(begin, count)});
    if (!result.ok()) {
      ++failed_;
      ADD_FAILURE() << result.status();
      continue;
    }
    const auto expected = std::as_const(outputs_[layer]).view().Rows(begin, count);
    if (!Compare(result->rows.view(), expected, {1e-4, 1e-5}).within_tolerance()) ++wrong_;
    ++answered_;
  }
}

}  // namespace switchyard
