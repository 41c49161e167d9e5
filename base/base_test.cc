#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/clock.h"
#include "base/logging/line_budget.h"
#include "base/logging/logging.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

std::string CapturedStderr() {
  EXPECT_TRUE(FlushLog());
  return testing::internal::GetCapturedStderr();
}

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
  std::string lines = CapturedStderr();
  EXPECT_NE(lines.find(R"("message":"slow","rows":5,"id":"two words\n\"x\"","request_id":"a-1"})"), std::string::npos)
      << lines;
  EXPECT_NE(lines.find(R"("message":"other"})"), std::string::npos) << lines;
  ASSERT_TRUE(SetUpLogging({.process = "front"}).ok());
  testing::internal::CaptureStderr();
  log();
  lines = CapturedStderr();
  EXPECT_NE(lines.find(R"([front] slow rows=5 id="two words\n\"x\"" request_id=a-1)"), std::string::npos) << lines;
}

TEST(Logging, WhatOthersWroteStaysOneShortLine) {
  ASSERT_TRUE(SetUpLogging({.process = "front"}).ok());
  testing::internal::CaptureStderr();
  const std::string long_name(100'000, 'n');
  {
    const LogFields fields(std::vector<LogField>{{"id", long_name}});
    spdlog::info("a name\nwith \033[2J, \xc2\x9b, \xff, \xed\xa0\x80 and größer: {}", long_name);
  }
  const std::string line = CapturedStderr();
  EXPECT_NE(line.find(R"(a name\nwith \x1b[2J, \xc2\x9b, \xff, \xed\xa0\x80 and größer: nnn)"), std::string::npos)
      << line;
  EXPECT_NE(line.find("more bytes)"), std::string::npos) << line;
  EXPECT_LT(line.size(), 6000);
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
}

TEST(Logging, LinesThatStrangersCauseAreLimitedAndCounted) {
  ASSERT_TRUE(SetUpLogging({.process = "front"}).ok());
  testing::internal::CaptureStderr();
  LineBudget budget(1);
  for (int i = 0; i < 1000; ++i) LogWithin(&budget, spdlog::level::warn, "refused {}", i);
  const std::string lines = CapturedStderr();
  EXPECT_NE(lines.find("refused 0\n"), std::string::npos) << lines;
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 1) << lines;
}

TEST(Logging, TimesOfTextLinesCanChange) {
  ASSERT_TRUE(SetUpLogging({.process = "front"}).ok());
  EXPECT_EQ(CurrentLogTimes(), LogTimes::kLocal);
  ASSERT_TRUE(SetLogTimes(LogTimes::kIso8601).ok());
  testing::internal::CaptureStderr();
  spdlog::info("now");
  EXPECT_THAT(CapturedStderr(), testing::ContainsRegex("^[0-9-]+T[0-9:.]+Z I .front. now\n"));
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
  const std::string line = CapturedStderr();
  EXPECT_NE(line.find(R"("process":"front","message":"a \"quoted\" word"})"), std::string::npos) << line;
}

}  // namespace
}  // namespace switchyard
