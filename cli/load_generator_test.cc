#include "cli/load_generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <set>
#include <thread>
#include <vector>

#include "base/tensor/convert.h"
#include "cli/histogram.h"
#include "cli/payloads.h"
#include "cli/random.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

TEST(LatencyHistogram, EmptyIsZero) {
  const LatencyHistogram histogram;
  EXPECT_EQ(histogram.count(), 0);
  EXPECT_EQ(histogram.Percentile(50), nanoseconds(0));
  EXPECT_EQ(histogram.max(), nanoseconds(0));
  EXPECT_EQ(histogram.mean(), nanoseconds(0));
}

TEST(LatencyHistogram, SmallValuesAreExact) {
  LatencyHistogram histogram;
  for (int value = 100; value >= 1; --value) histogram.Record(nanoseconds(value));
  EXPECT_EQ(histogram.Percentile(1), nanoseconds(1));
  EXPECT_EQ(histogram.Percentile(50), nanoseconds(50));
  EXPECT_EQ(histogram.Percentile(99), nanoseconds(99));
  EXPECT_EQ(histogram.Percentile(99.5), nanoseconds(100));
  EXPECT_EQ(histogram.Percentile(100), nanoseconds(100));
  EXPECT_EQ(histogram.mean(), nanoseconds(51));  // 50.5
}

TEST(LatencyHistogram, ExtremesHaveBuckets) {
  LatencyHistogram histogram;
  histogram.Record(nanoseconds::max());
  histogram.Record(nanoseconds(-5));
  EXPECT_EQ(histogram.Percentile(50), nanoseconds(0));
  EXPECT_EQ(histogram.Percentile(100), nanoseconds::max());
}

// Compares with the percentiles of the sorted values, over eight decades: never too low, at most 1/128 too high.
TEST(LatencyHistogram, PercentilesAreWithinABucketOfTheTruth) {
  LatencyHistogram histogram;
  std::vector<int64_t> values;
  uint64_t state = 42;
  for (int i = 0; i < 100'000; ++i) {
    values.push_back(static_cast<int64_t>(std::pow(10, 1 + 8 * NextUniform(&state))));
    histogram.Record(nanoseconds(values.back()));
  }
  std::sort(values.begin(), values.end());
  for (double percent : {0.1, 1.0, 25.0, 50.0, 95.0, 99.0, 99.9, 100.0}) {
    const int64_t exact = values[static_cast<size_t>(std::ceil(percent / 100 * values.size())) - 1];
    const int64_t shown = histogram.Percentile(percent).count();
    EXPECT_GE(shown, exact) << percent;
    EXPECT_LE(shown, exact + exact / 128) << percent;
  }
  EXPECT_EQ(histogram.max().count(), values.back());
}

TEST(ArrivalSchedule, UniformArrivalsAreEven) {
  ArrivalSchedule schedule(Arrivals::kUniform, 1000, 1);
  for (int i = 1; i <= 100; ++i) EXPECT_EQ(schedule.Next(), milliseconds(i));
}

// The gaps of a Poisson process have the mean and the standard deviation 1/rate.
TEST(ArrivalSchedule, PoissonGapsAreExponential) {
  ArrivalSchedule schedule(Arrivals::kPoisson, 100, 7);
  constexpr int kNumGaps = 200'000;
  double sum = 0, sum_of_squares = 0, last = 0;
  for (int i = 0; i < kNumGaps; ++i) {
    const double now = std::chrono::duration<double>(schedule.Next()).count();
    ASSERT_GE(now, last);
    sum += now - last;
    sum_of_squares += (now - last) * (now - last);
    last = now;
  }
  const double mean = sum / kNumGaps;
  EXPECT_NEAR(mean, 0.01, 1e-4);
  EXPECT_NEAR(std::sqrt(sum_of_squares / kNumGaps - mean * mean), 0.01, 2e-4);
}

TEST(ArrivalSchedule, TheSeedDecidesTheTimes) {
  ArrivalSchedule a(Arrivals::kPoisson, 100, 7), b(Arrivals::kPoisson, 100, 7), c(Arrivals::kPoisson, 100, 8);
  const nanoseconds first = a.Next();
  EXPECT_EQ(first, b.Next());
  EXPECT_NE(first, c.Next());
}

// Answers in order from its own thread; `answer` decides each outcome.
class FakeService {
 public:
  explicit FakeService(std::function<Outcome(int64_t idx)> answer)
      : answer_(std::move(answer)), thread_([this] { Serve(); }) {}
  ~FakeService() {
    {
      MutexLock lock(&mu_);
      stopping_ = true;
      changed_.SignalAll();
    }
    thread_.join();
  }

  void Send(int64_t idx, DoneFn done) {
    MutexLock lock(&mu_);
    waiting_.push_back({idx, std::move(done)});
    most_waiting_ = std::max(most_waiting_, ++in_flight_);
    changed_.SignalAll();
  }
  int most_waiting() {
    MutexLock lock(&mu_);
    return most_waiting_;
  }

 private:
  struct Request {
    int64_t idx;
    DoneFn done;
  };

  bool Next(Request* request) {
    MutexLock lock(&mu_);
    while (waiting_.empty() && !stopping_) changed_.Wait(&mu_);
    if (waiting_.empty()) return false;
    *request = std::move(waiting_.front());
    waiting_.pop_front();
    --in_flight_;
    return true;
  }
  void Serve() {
    for (Request request; Next(&request);) request.done(answer_(request.idx));
  }

  const std::function<Outcome(int64_t)> answer_;
  Mutex mu_;
  CondVar changed_;
  std::deque<Request> waiting_ ABSL_GUARDED_BY(mu_);
  int in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  int most_waiting_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

TEST(GenerateLoad, AClosedLoopKeepsItsConcurrencyInFlight) {
  std::atomic<int64_t> answered{0};
  FakeService service([&](int64_t) {
    answered.fetch_add(1);
    return Outcome{.status = absl::OkStatus(), .num_bytes = 10};
  });
  const LoadStats stats = GenerateLoad({.duration = milliseconds(50), .concurrency = 4},
                                       [&](int64_t idx, DoneFn done) { service.Send(idx, std::move(done)); });
  EXPECT_EQ(stats.num_ok, answered.load());
  EXPECT_EQ(stats.num_bytes, 10 * stats.num_ok);
  EXPECT_EQ(stats.latency.count(), stats.num_ok);
  EXPECT_GT(stats.num_ok, 4);
  EXPECT_EQ(stats.num_failed(), 0);
  EXPECT_GE(stats.elapsed_s, 0.05);
  EXPECT_LE(service.most_waiting(), 4);
}

// Answers that come before send returns must not pile up on the stack, because one run may have millions of them.
TEST(GenerateLoad, AClosedLoopSurvivesImmediateAnswers) {
  const LoadStats stats = GenerateLoad({.duration = milliseconds(100), .concurrency = 2}, [](int64_t, DoneFn done) {
    done({.status = absl::ResourceExhaustedError("too large")});
  });
  EXPECT_EQ(stats.num_ok, 0);
  EXPECT_GT(stats.num_failed(), 100);
  EXPECT_EQ(stats.errors.at(absl::StatusCode::kResourceExhausted).first_message, "too large");
  EXPECT_EQ(stats.latency.count(), 0);
}

TEST(GenerateLoad, CountsErrorsByCode) {
  FakeService service([&](int64_t idx) {
    if (idx % 3 == 0) return Outcome{.status = absl::UnavailableError("gone")};
    if (idx % 3 == 1) return Outcome{.status = absl::DeadlineExceededError("late")};
    return Outcome{.status = absl::OkStatus()};
  });
  const LoadStats stats =
      GenerateLoad({.duration = milliseconds(50), .rate_per_s = 3000, .arrivals = Arrivals::kUniform},
                   [&](int64_t idx, DoneFn done) { service.Send(idx, std::move(done)); });
  // 50 ms hold the arrivals at 1/3 ms, 2/3 ms, …: 149 of them, numbers 0 to 148.
  EXPECT_EQ(stats.errors.at(absl::StatusCode::kUnavailable).count, 50);
  EXPECT_EQ(stats.errors.at(absl::StatusCode::kDeadlineExceeded).count, 50);
  EXPECT_EQ(stats.num_ok, 49);
  EXPECT_EQ(stats.num_failed(), 100);
}

TEST(GenerateLoad, TheWarmupIsNotMeasured) {
  std::atomic<int64_t> answered{0};
  FakeService service([&](int64_t) {
    answered.fetch_add(1);
    return Outcome{.status = absl::OkStatus()};
  });
  const LoadStats stats = GenerateLoad(
      {.warmup = milliseconds(30), .duration = milliseconds(30), .rate_per_s = 1000, .arrivals = Arrivals::kUniform},
      [&](int64_t idx, DoneFn done) { service.Send(idx, std::move(done)); });
  EXPECT_EQ(answered.load(), 59);  // at 1 to 59 ms
  EXPECT_EQ(stats.num_ok, 30);     // at 30 to 59 ms
}

// A service that answers nothing until the run's end delays every later request; each is timed from when it was due.
TEST(GenerateLoad, AnOpenLoopChargesAStallToEveryRequestItDelays) {
  std::vector<DoneFn> held;
  const LoadStats stats = GenerateLoad(
      {.duration = milliseconds(100), .rate_per_s = 1000, .arrivals = Arrivals::kUniform, .max_in_flight = 1000},
      [&](int64_t idx, DoneFn done) {
        held.push_back(std::move(done));
        if (idx < 98) return;
        for (DoneFn& late : held) late({.status = absl::OkStatus()});
      });
  EXPECT_EQ(stats.num_ok, 99);
  EXPECT_GE(stats.latency.Percentile(50), milliseconds(49)) << "due at 50 ms, answered at 99 ms or later";
  EXPECT_GE(stats.latency.max(), milliseconds(98));
}

TEST(GenerateLoad, TheCapOnRequestsInFlightIsReportedNotHidden) {
  constexpr milliseconds kDuration(40);
  std::vector<DoneFn> held;
  std::thread answerer;
  const LoadStats stats =
      GenerateLoad({.duration = kDuration, .rate_per_s = 1000, .arrivals = Arrivals::kUniform, .max_in_flight = 3},
                   [&](int64_t idx, DoneFn done) {
                     if (idx > 2) return done({.status = absl::OkStatus()});  // wrong; the counts would show it
                     held.push_back(std::move(done));
                     if (idx != 2) return;
                     // These three stay in flight until the run is over, also on a busy machine, so no more requests
                     // can be sent.
                     const auto after_the_run = std::chrono::steady_clock::now() + 20 * kDuration;
                     answerer = std::thread([&held, after_the_run] {
                       std::this_thread::sleep_until(after_the_run);
                       for (DoneFn& late : held) late({.status = absl::OkStatus()});
                     });
                   });
  answerer.join();
  EXPECT_EQ(stats.num_ok, 3);
  EXPECT_EQ(stats.num_unsent, 36);
  EXPECT_GT(stats.elapsed_s, 0.04);
}

TEST(Payloads, AreDistinctNormalAndNeverZero) {
  const Payloads payloads = Payloads::Make(DType::kF32, 64, 33, 5);
  EXPECT_EQ(payloads.size(), 8u);
  std::set<float> firsts;
  double sum = 0, sum_of_squares = 0;
  for (size_t block = 0; block < payloads.size(); ++block) {
    const ConstMatrixView view = payloads.Get(static_cast<int64_t>(block))->view();
    firsts.insert(view.as<float>()[0]);
    for (int i = 0; i < 64 * 33; ++i) {
      const float value = view.as<float>()[i];
      ASSERT_TRUE(std::isfinite(value));
      ASSERT_NE(value, 0.0f);
      sum += value;
      sum_of_squares += value * value;
    }
  }
  const double count = 8 * 64 * 33;
  EXPECT_EQ(firsts.size(), 8u);
  EXPECT_NEAR(sum / count, 0, 0.03);
  EXPECT_NEAR(sum_of_squares / count, 1, 0.05);
}

TEST(Payloads, TheSeedDecidesTheValues) {
  const Payloads a = Payloads::Make(DType::kBF16, 3, 5, 9), b = Payloads::Make(DType::kBF16, 3, 5, 9);
  EXPECT_EQ(std::memcmp(a.Get(1)->buffer.data(), b.Get(1)->buffer.data(), 30), 0);
  EXPECT_NE(std::memcmp(a.Get(0)->buffer.data(), a.Get(1)->buffer.data(), 30), 0);
  EXPECT_EQ(a.Get(8), a.Get(0));
}

}  // namespace
}  // namespace switchyard
