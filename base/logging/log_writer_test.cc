#include "base/logging/log_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/process/bounded_write.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using testing::EndsWith;

constexpr size_t kPipeBytes = 8192;
constexpr size_t kQueueBytes = 64 << 10;

// A pipe of two pages that is read only when a test says so.
class LogWriterTest : public testing::Test {
 protected:
  LogWriterTest() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    reader_.reset(ends[0]);
    pipe_.reset(ends[1]);
    fcntl(pipe_.get(), F_SETPIPE_SZ, kPipeBytes);
    fcntl(reader_.get(), F_SETFL, O_NONBLOCK);
    KeepFromBlocking(pipe_.get());
  }

  static std::string TellDrops(int64_t lines) { return absl::StrCat(lines, " missing\n"); }

  // The bytes in the pipe.
  std::string Read() {
    std::string text;
    char bytes[4096];
    for (ssize_t count; (count = read(reader_.get(), bytes, sizeof(bytes))) > 0;) text.append(bytes, count);
    return text;
  }

  // Reads until the writer has nothing to write any more.
  std::string ReadAll(LogWriter& writer) {
    std::string text;
    do {
      text += Read();
    } while (!writer.Flush(milliseconds(1)));
    return text + Read();
  }

  UniqueFd reader_, pipe_;
};

TEST_F(LogWriterTest, WritesLinesInOrder) {
  LogWriter writer(pipe_.get(), kQueueBytes, TellDrops);
  writer.Write("one\n");
  writer.Write("two\n");
  EXPECT_TRUE(writer.Flush(milliseconds(10'000)));
  EXPECT_TRUE(writer.is_idle());
  EXPECT_EQ(Read(), "one\ntwo\n");
  EXPECT_EQ(writer.num_dropped(), 0);
}

TEST_F(LogWriterTest, AReaderThatDoesNotReadStopsNobodyAndIsToldWhatIsMissing) {
  LogWriter writer(pipe_.get(), kQueueBytes, TellDrops);
  constexpr int kLines = 10'000;
  for (int i = 0; i < kLines; ++i) writer.Write(absl::StrCat("a line of the log with the number ", i, "\n"));
  const int64_t dropped = writer.num_dropped();
  EXPECT_GT(dropped, kLines / 2);
  EXPECT_FALSE(writer.Flush(milliseconds(1)));
  const std::vector<std::string> lines = absl::StrSplit(ReadAll(writer), '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), kLines - dropped + 1);
  EXPECT_EQ(lines.back(), absl::StrCat(dropped, " missing"));
  for (size_t i = 0; i + 1 < lines.size(); ++i) EXPECT_THAT(lines[i], EndsWith(absl::StrCat(" ", i)));
  writer.Write("later\n");
  EXPECT_EQ(ReadAll(writer), "later\n");
}

TEST_F(LogWriterTest, TheEndWaitsForNoReader) {
  LogWriter writer(pipe_.get(), kQueueBytes, TellDrops);
  for (int i = 0; i < 1000; ++i) writer.Write(absl::StrCat("line ", i, "\n"));
  const int64_t dropped = writer.num_dropped();
  writer.Finish(milliseconds(1));
  EXPECT_GT(writer.num_dropped(), dropped) << "the lines that were queued";
  writer.Write("after the end\n");
}

TEST_F(LogWriterTest, TheEndWritesWhatIsQueued) {
  LogWriter writer(pipe_.get(), kQueueBytes, TellDrops);
  for (int i = 0; i < 3; ++i) writer.Write(absl::StrCat(i, "\n"));
  writer.Finish(milliseconds(10'000));
  writer.Write("after the end\n");
  EXPECT_EQ(Read(), "0\n1\n2\nafter the end\n");
}

TEST_F(LogWriterTest, LinesThatCannotBeWrittenCountAsDropped) {
  const UniqueFd full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  LogWriter writer(full.get(), kQueueBytes, TellDrops);
  writer.Write("one\n");
  EXPECT_TRUE(writer.Flush(milliseconds(10'000)));
  EXPECT_EQ(writer.num_dropped(), 1);
}

TEST_F(LogWriterTest, ALineLongerThanThePipeIsWrittenInParts) {
  LogWriter writer(pipe_.get(), kQueueBytes, TellDrops);
  const std::string line = std::string(5 * kPipeBytes, 'x') + "\n";
  writer.Write(line);
  EXPECT_EQ(ReadAll(writer), line);
}

TEST_F(LogWriterTest, OtherUsersOfAPipeDoNotNoticeThatItDoesNotBlock) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]), theirs(ends[1]), ours(dup(ends[1]));
  KeepFromBlocking(ours.get());
  EXPECT_TRUE(fcntl(ours.get(), F_GETFL) & O_NONBLOCK);
  EXPECT_FALSE(fcntl(theirs.get(), F_GETFL) & O_NONBLOCK);
}

}  // namespace
}  // namespace switchyard
