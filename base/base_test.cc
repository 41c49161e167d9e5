#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "base/clock.h"
#include "base/line_budget.h"
#include "base/logging.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  SY_ASSIGN_OR_RETURN(const int half, Half(value));
  return Half(half);
}

TEST(StatusMacros, PropagateErrorsAndValues) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status().message(), "odd");
}

TEST(Annotate, KeepsTheCodeAndPrefixesTheMessage) {
  const absl::Status status = Annotate(absl::NotFoundError("no such tensor"), "layer 3");
  EXPECT_EQ(status, absl::NotFoundError("layer 3: no such tensor"));
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

TEST(FakeClock, MovesOnlyWhenTold) {
  FakeClock clock;
  const SteadyTime start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(std::chrono::microseconds(5));
  EXPECT_EQ(MicrosBetween(start, clock.Now()), 5);
}

TEST(Mutex, CondVarHandsAValueBetweenThreads) {
  Mutex mu;
  CondVar cv;
  int value = 0;
  std::thread writer([&] {
    MutexLock lock(&mu);
    value = 7;
    cv.SignalAll();
  });
  {
    MutexLock lock(&mu);
    while (value == 0) cv.Wait(&mu);
    EXPECT_EQ(value, 7);
    EXPECT_TRUE(cv.WaitFor(&mu, std::chrono::milliseconds(1)));
  }
  writer.join();
}

TEST(UniqueFd, ClosesWhatItOwns) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  UniqueFd reader(ends[0]);
  {
    UniqueFd writer(ends[1]);
    UniqueFd moved = std::move(writer);
    EXPECT_FALSE(writer.valid());
    EXPECT_EQ(moved.get(), ends[1]);
  }
  char byte;
  EXPECT_EQ(read(reader.get(), &byte, 1), 0) << "the write end should have been closed";
}

TEST(Logging, RefusesUnknownLevelsAndFormats) {
  EXPECT_TRUE(absl::IsInvalidArgument(SetUpLogging({.level = "loud"})));
  EXPECT_TRUE(absl::IsInvalidArgument(SetUpLogging({.format = "xml"})));
}

TEST(Logging, FieldsAreMembersOfJsonLinesAndFollowTheMessageInText) {
  const auto log = [] {
    const LogFields outer(std::vector<LogField>{{"request_id", "a-1"}});
    const LogFields inner(std::vector<LogField>{{"rows", 5}, {"id", "two words\n\"x\""}});
    spdlog::info("slow");
  };
  ASSERT_TRUE(SetUpLogging({.format = "json", .process = "front"}).ok());
  testing::internal::CaptureStderr();
  log();
  spdlog::info("other");
  std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_NE(lines.find(R"("message":"slow","rows":5,"id":"two words\n\"x\"","request_id":"a-1"})"), std::string::npos)
      << lines;
  EXPECT_NE(lines.find(R"("message":"other"})"), std::string::npos) << lines;
  ASSERT_TRUE(SetUpLogging({.process = "front"}).ok());
  testing::internal::CaptureStderr();
  log();
  lines = testing::internal::GetCapturedStderr();
  EXPECT_NE(lines.find(R"([front] slow rows=5 id="two words\n\"x\"" request_id=a-1)"), std::string::npos) << lines;
}

TEST(Logging, TimesOfTextLinesCanChange) {
  ASSERT_TRUE(SetUpLogging({.process = "front"}).ok());
  EXPECT_EQ(CurrentLogTimes(), LogTimes::kLocal);
  ASSERT_TRUE(SetLogTimes(LogTimes::kIso8601).ok());
  testing::internal::CaptureStderr();
  spdlog::info("now");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::ContainsRegex("^[0-9-]+T[0-9:.]+Z I .front. now\n"));
  ASSERT_TRUE(SetUpLogging({.format = "json", .process = "front"}).ok());
  EXPECT_EQ(CurrentLogTimes(), LogTimes::kIso8601);
  EXPECT_TRUE(absl::IsFailedPrecondition(SetLogTimes(LogTimes::kLocal)));
}

TEST(LineBudget, SoManyLinesASecondAndTheOthersAreCounted) {
  FakeClock clock;
  LineBudget budget(2);
  EXPECT_EQ(budget.Take(clock.Now()), 0);
  EXPECT_EQ(budget.Take(clock.Now()), 0);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(budget.Take(clock.Now()), std::nullopt);
  clock.Advance(std::chrono::seconds(1));
  EXPECT_EQ(budget.Take(clock.Now()), 5);
  EXPECT_EQ(budget.Take(clock.Now()), 0);
  EXPECT_EQ(budget.Take(clock.Now()), std::nullopt);
}

TEST(Logging, JsonLinesEscapeTheMessage) {
  testing::internal::CaptureStderr();
  ASSERT_TRUE(SetUpLogging({.level = "info", .format = "json", .process = "front"}).ok());
  spdlog::info("a \"quoted\" word");
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_NE(line.find(R"("process":"front","message":"a \"quoted\" word"})"), std::string::npos) << line;
}

}  // namespace
}  // namespace switchyard
