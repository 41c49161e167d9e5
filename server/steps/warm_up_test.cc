#include "server/steps/warm_up.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "base/tensor/buffer.h"

namespace switchyard {
namespace {

constexpr int64_t kDim = 8;
constexpr int64_t kFullRows = 10'000;  // more values than the pool of random numbers has

class WarmUpTest : public ::testing::Test {
 protected:
  WarmUpTest() {
    for (const char* name : {"0", "1"}) {
      auto layer = std::shared_ptr<ServedLayer>(
          new ServedLayer{.model = "m", .on_group = {FirstPlacement(Placement({0, 0, 0, 0}, 1))}});
      layer->spec.name = name;
      layer->spec.hidden_dim = kDim;
      layer->spec.num_experts = 4;
      layer->spec.gate.top_k = 2;
      layer->on_group.compute_dtype = DType::kBF16;
      layers_.push_back(std::move(layer));
    }
  }

  // A port that remembers the requests, and answers them with `answer`, or never if that is nullopt.
  WarmUpPort Port(std::optional<absl::Status> answer) {
    return {.enqueue =
                [this, answer](std::shared_ptr<Request> request) {
                  seen_.push_back(request);
                  if (answer.has_value()) request->ask.done(*answer);
                },
            .cancel =
                [this](const std::shared_ptr<Request>& request) {
                  ++num_cancelled_;
                  request->ask.done(absl::CancelledError(""));
                },
            .should_stop = [this] { return stop_; }};
  }

  std::vector<std::shared_ptr<ServedLayer>> layers_;
  std::vector<std::shared_ptr<Request>> seen_;
  int num_cancelled_ = 0;
  absl::Status stop_;
};

TEST_F(WarmUpTest, EveryLayerRunsOneRowAndThenAFullStep) {
  FakeClock clock;
  ASSERT_TRUE(WarmUp({.full_rows = kFullRows, .clock = &clock}, layers_, Port(absl::OkStatus())).ok());
  ASSERT_EQ(seen_.size(), 4u);
  const std::vector<int64_t> rows = {1, 1, kFullRows, kFullRows};
  for (size_t i = 0; i < seen_.size(); ++i) {
    const Request& request = *seen_[i];
    EXPECT_EQ(request.ask.layer, layers_[i % 2]);
    EXPECT_EQ(request.ask.num_rows, rows[i]);
    EXPECT_EQ(request.ask.dtype, DType::kBF16);
    EXPECT_EQ(request.progress.rows.size_bytes(), rows[i] * kDim * SizeOf(DType::kBF16));
    EXPECT_EQ(request.ask.top_k, 2);
    EXPECT_TRUE(request.ask.is_warm_up);
  }
}

TEST_F(WarmUpTest, RowsDiffer) {
  ASSERT_TRUE(WarmUp({.full_rows = kFullRows}, layers_, Port(absl::OkStatus())).ok());
  HostMatrix rows = HostMatrix::Allocate(DType::kF32, kFullRows, kDim);
  seen_.back()->progress.rows.ReadNext(DType::kBF16, kFullRows * kDim, DType::kF32, rows.buffer.data());
  const auto* values = reinterpret_cast<const float*>(rows.buffer.data());
  for (int64_t row = 1; row < kFullRows; ++row) {
    ASSERT_FALSE(std::equal(values, values + kDim, values + row * kDim)) << row;
  }
}

TEST_F(WarmUpTest, AFailureNamesTheLayer) {
  const absl::Status status = WarmUp({.full_rows = kFullRows}, layers_, Port(absl::InternalError("broken")));
  EXPECT_EQ(status, absl::InternalError("warm-up of m.0, 1 rows: broken"));
  EXPECT_EQ(seen_.size(), 1u);
}

TEST_F(WarmUpTest, StopsWhenAskedAndTakesItsRequestBack) {
  stop_ = absl::CancelledError("enough");
  EXPECT_EQ(WarmUp({.full_rows = kFullRows}, layers_, Port(std::nullopt)), stop_);
  EXPECT_EQ(num_cancelled_, 1);
}

TEST_F(WarmUpTest, StepsThatWouldTakeTooLongAreMadeSmaller) {
  FakeClock clock;
  const SteadyTime begin = clock.Now();
  WarmUpPort port = Port(absl::OkStatus());
  const auto enqueue = port.enqueue;
  port.enqueue = [&](const std::shared_ptr<Request>& request) {  // 10 ms a row, so that a full step takes 100 s
    clock.Advance(std::chrono::milliseconds(10) * request->ask.num_rows);
    enqueue(request);
  };
  ASSERT_TRUE(WarmUp({.full_rows = kFullRows, .clock = &clock}, layers_, port).ok());
  EXPECT_LE(clock.Now() - begin, std::chrono::seconds(5));
  std::vector<int64_t> rows;
  for (const auto& request : seen_) rows.push_back(request->ask.num_rows);
  EXPECT_EQ(rows, (std::vector<int64_t>{1, 1, 8, 64, 8, 64}));
}

TEST_F(WarmUpTest, GoesOnWithoutTheRestWhenTimeIsUp) {
  EXPECT_TRUE(WarmUp({.full_rows = 1, .time_limit = std::chrono::milliseconds(-1)}, layers_, Port(std::nullopt)).ok());
  EXPECT_TRUE(seen_.empty());
}

}  // namespace
}  // namespace switchyard
