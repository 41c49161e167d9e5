#include "server/observe/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "base/logging/logging.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

class RequestLogTest : public testing::Test {
 protected:
  RequestLogTest()
      : layer_{.id = {0}, .model = "m", .spec = {}, .gates = {}, .on_group = {FirstPlacement(Placement::Even(1, 1))}} {
    layer_.spec.name = "3";
    request_.ask.layer = {std::shared_ptr<void>(), &layer_};  // this test's
    request_.ask.num_rows = 5;
    request_.outcome.stats = {.num_steps = 2, .queue_us = 7, .gate_us = 3, .plan_us = 1, .step_us = 40, .replays = 1};
    identity_ = {.id = "call-1", .trace = std::nullopt, .peer = "ipv4:10.0.0.9:77"};
  }

  // Lines logged by `run` at `level` and above.
  template <typename Fn>
  static std::vector<std::string> LinesOf(const std::string& level, Fn run) {
    EXPECT_TRUE(SetUpLogging({.level = level, .process = "front"}).ok());
    testing::internal::CaptureStderr();
    run();
    EXPECT_TRUE(FlushLog());
    return absl::StrSplit(testing::internal::GetCapturedStderr(), '\n', absl::SkipEmpty());
  }

  void Answered(RequestLog& log, const absl::Status& status, int64_t total_us) {
    log.Answered(request_, identity_, status, total_us, clock_.Now());
  }

  FakeClock clock_;
  ServedLayer layer_;
  Request request_;
  RequestIdentity identity_;
};

TEST_F(RequestLogTest, SlowRequestsAreShownWithTheirStages) {
  RequestLog log(1000);
  identity_.trace = {"0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"};
  request_.ask.caller_id = "mine\n";
  const auto lines = LinesOf("info", [&] {
    Answered(log, absl::OkStatus(), 999'999);
    Answered(log, absl::OkStatus(), 1'000'000);
  });
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_THAT(
      lines[0],
      HasSubstr("slow request request_id=call-1 trace_id=0af7651916cd43dd8448eb211c80319c "
                "peer=ipv4:10.0.0.9:77 id=\"mine\\n\" model=m layer=3 rows=5 total_us=1000000 code=OK queue_us=7 "
                "gate_us=3 plan_us=1 step_us=40 steps=2 replays=1"));
}

TEST_F(RequestLogTest, ZeroLogsNoSlowRequests) {
  RequestLog log(0);
  EXPECT_THAT(LinesOf("info", [&] { Answered(log, absl::OkStatus(), 1'000'000'000); }), IsEmpty());
}

TEST_F(RequestLogTest, OverloadDoesNotFloodTheLog) {
  RequestLog log(1000);
  const auto lines = LinesOf("info", [&] {
    for (int i = 0; i < 1000; ++i) Answered(log, absl::OkStatus(), 2'000'000);
    clock_.Advance(std::chrono::seconds(1));
    Answered(log, absl::OkStatus(), 2'000'000);
  });
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_THAT(lines[1], HasSubstr("slow request (and 999 more) request_id="));
}

TEST_F(RequestLogTest, OurFailuresAreWarnings) {
  RequestLog log(1000);
  const auto lines = LinesOf("info", [&] {
    Answered(log, absl::InternalError("a step failed"), 5);
    Answered(log, absl::CancelledError("gone"), 5);
    log.Refused(&layer_, identity_, absl::InvalidArgumentError("num_rows: …"));
  });
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_THAT(lines[0], AllOf(HasSubstr("request failed: a step failed request_id=call-1"), HasSubstr("code=INTERNAL"),
                              Not(HasSubstr("steps="))));
}

TEST_F(RequestLogTest, DebugLinesShowEveryRequest) {
  RequestLog log(1000);
  const auto lines = LinesOf("debug", [&] {
    Answered(log, absl::OkStatus(), 5);
    log.Refused(nullptr, identity_, absl::NotFoundError("no model"));
  });
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_THAT(lines[0], HasSubstr("request answered request_id=call-1 peer="));
  EXPECT_THAT(lines[1], HasSubstr("request refused: no model request_id=call-1 peer=ipv4:10.0.0.9:77 code=NOT_FOUND"));
}

}  // namespace
}  // namespace switchyard
