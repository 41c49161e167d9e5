// Small storms against a real server. Everything is answered or refused with the right code, nothing is left behind,
// and an honest caller gets right answers all the while. tests/load/run.sh measures the speed.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <set>

#include "base/clock.h"
#include "tests/fuzz/messages.h"
#include "tests/fuzz/mutator.h"
#include "tests/load/cancel_storm.h"
#include "tests/load/half_open.h"
#include "tests/load/honest_caller.h"
#include "tests/load/huge_message.h"
#include "tests/load/overload.h"
#include "tests/load/server_watch.h"
#include "tests/load/stalled_readers.h"

namespace switchyard {
namespace {

constexpr char kCheckpoint[] = "tests/testdata/jargon-moe";
constexpr int64_t kDim = 128;
constexpr std::chrono::milliseconds kPeriod{20};
constexpr std::chrono::milliseconds kPatience{30'000};
constexpr int64_t kMaxQueuedRows = 20'000;
constexpr int64_t kMaxRequestBytes = 8 << 20;
constexpr int64_t kMib = 1 << 20;

class StormTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto server =
        ServerProcess::Start({absl::StrCat("--model=m=", kCheckpoint), "--local_workers=2", "--compute_dtype=fp32",
                              absl::StrCat("--max_queued_rows=", kMaxQueuedRows),
                              absl::StrCat("--max_request_bytes=", kMaxRequestBytes), "--handshake_timeout_ms=2000"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
    work_ = new HonestWork(GoldenWork("m", kCheckpoint, 1, 8));
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Stop(), 0);
    delete server_;
    delete work_;
  }

  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    honest_ = std::make_unique<HonestCaller>(*server_, *work_, kPeriod);
    honest_->WaitForCalls(3);
  }
  void TearDown() override {
    honest_->WaitForCalls(3);  // these are calls after the storm
    const HonestReport report = honest_->Take();
    EXPECT_EQ(report.failed, 0) << report.first_failure;
    EXPECT_EQ(report.wrong, 0);
    EXPECT_GE(report.answered, 6);
    honest_.reset();
    const AdmittedWork left = WaitUntilIdle(*server_, kPatience);
    EXPECT_TRUE(left.none()) << left.requests << " requests, " << left.rows << " rows, " << left.bytes << " bytes";
  }

  static void ExpectOnly(const std::map<absl::StatusCode, int64_t>& codes, const std::set<absl::StatusCode>& expected) {
    for (const auto& [code, count] : codes) {
      EXPECT_TRUE(expected.count(code)) << count << " × " << absl::StatusCodeToString(code);
    }
  }

  static ServerProcess* server_;
  static HonestWork* work_;
  std::unique_ptr<HonestCaller> honest_;
};

ServerProcess* StormTest::server_ = nullptr;
HonestWork* StormTest::work_ = nullptr;

TEST_F(StormTest, CancelledCallsOfBothApisLeaveNothingBehind) {
  for (const char* method : {kForwardMethod, kInferMethod, kForwardStreamMethod, kInferStreamMethod}) {
    const CancelStorm storm{.target = server_->grpc_address(),
                            .method = method,
                            .message = ToByteBuffer(RequestBytes(method, "m", "2", 300, kDim)),
                            .num_calls = 1500};
    auto codes = RunCancelStorm(storm);
    ExpectOnly(codes, {absl::StatusCode::kOk, absl::StatusCode::kCancelled, absl::StatusCode::kResourceExhausted});
    EXPECT_GT(codes[absl::StatusCode::kCancelled], 100) << method;
  }
}

TEST_F(StormTest, HalfOpenConnectionsKeepNobodyOutAndAreClosed) {
  auto connections = HalfOpenConnections::Open(server_->grpc_address(), 200);
  ASSERT_TRUE(connections.ok()) << connections.status();
  honest_->WaitForCalls(20);
  EXPECT_TRUE(server_->Connect()->GetStatus().ok()) << "a new connection beside them";
  EXPECT_EQ(connections->WaitUntilClosed(200, kPatience), 200);
}

TEST_F(StormTest, MessagesBeyondTheLimitAreRefusedWithoutBeingKept) {
  const std::string& target = server_->grpc_address();
  for (const char* method : {kForwardMethod, kInferMethod}) {
    const grpc::Status status = SendHugeMessage(target, method, 256 * kMib);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  }
}

// Unread answers take the server's memory, so they count as held until they are sent or their caller hangs up.
TEST_F(StormTest, AnswersThatNobodyReadsAreCounted) {
  constexpr int kCallers = 50, kRows = 100;
  constexpr int64_t kBytes = kCallers * kRows * kDim * int64_t{sizeof(float)};
  const auto readers = StalledReaders::Start(server_->grpc_address(), kForwardMethod,
                                             RequestBytes(kForwardMethod, "m", "2", kRows, kDim), kCallers);
  ASSERT_TRUE(readers.ok()) << readers.status();
  const SteadyTime end = Clock::Real().Now() + kPatience;
  AdmittedWork held;
  do {
    honest_->WaitForCalls(1);
    held = AdmittedBy(*server_);
  } while ((held.bytes < kBytes || held.rows >= kRows) && Clock::Real().Now() < end);
  EXPECT_GE(held.bytes, kBytes);
  EXPECT_LT(held.rows, kRows) << "they are answered";
}

TEST_F(StormTest, MutatedMessagesAreAnswered) {
  Mutator infer(20260805, InferCorpus()), forward(20260805, ForwardCorpus());
  const std::pair<const char*, Mutator*> methods[] = {
      {kInferMethod, &infer}, {kInferStreamMethod, &infer}, {kForwardMethod, &forward}};
  for (int i = 0; i < 300; ++i) {
    const auto& [method, mutator] = methods[i % 3];
    const CancelStorm storm{.target = server_->grpc_address(),
                            .method = method,
                            .message = mutator->Cut(mutator->Next()),
                            .num_calls = 4,
                            .max_open = 1000,
                            .num_channels = 1};
    for (const auto& [code, count] : RunCancelStorm(storm)) {
      EXPECT_NE(code, absl::StatusCode::kUnavailable) << "the server went away";
      EXPECT_NE(code, absl::StatusCode::kInternal);
    }
  }
}

// Many more requests than the queue holds. Some are answered; the others are refused with pushback or run out of time.
TEST_F(StormTest, OverloadIsRefusedWithPushback) {
  const Overload overload{.target = server_->grpc_address(),
                          .model = "m",
                          .layer = "2",
                          .num_rows = 2000,
                          .hidden_dim = kDim,
                          .deadline = std::chrono::seconds(20)};
  LoadOptions options;
  options.duration = std::chrono::seconds(2);
  options.rate_per_s = 500;
  options.max_in_flight = 50;
  const OverloadResult result = RunLoad(overload, options);
  EXPECT_GT(result.stats.num_ok, 0);
  EXPECT_GT(result.refused, 0);
  EXPECT_EQ(result.refused_without_pushback, 0);
  for (const auto& [code, error] : result.stats.errors) {
    EXPECT_EQ(code, absl::StatusCode::kResourceExhausted) << error.count << " × " << error.first_message;
  }
}

// The limit on descriptors that a login shell or a service manager sets does not limit the server.
TEST(Descriptors, MoreConnectionsThanTheUsualLimitAreServed) {
  rlimit usual;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &usual), 0);
  const rlimit low = {150, usual.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const auto server = ServerProcess::Start({absl::StrCat("--model=m=", kCheckpoint), "--local_workers=1"});
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto connections = HalfOpenConnections::Open((*server)->grpc_address(), 300);
  ASSERT_TRUE(connections.ok()) << connections.status();
  const auto status = (*server)->Connect()->GetStatus();
  EXPECT_TRUE(status.ok()) << status.status();
  EXPECT_GT(UsageOf((*server)->process().pid()).num_fds, 300);
  EXPECT_EQ((*server)->Stop(), 0);
}

}  // namespace
}  // namespace switchyard
