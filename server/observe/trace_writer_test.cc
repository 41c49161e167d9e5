#include "server/observe/trace_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

class TraceWriterTest : public testing::Test {
 protected:
  TraceWriterTest() : path_(std::filesystem::path(testing::TempDir()) / "trace.json") {
    for (const char* suffix : {"", ".0", ".1", ".2"}) std::filesystem::remove(path_ + suffix);
  }

  static TraceRecord Record(const std::string& id) {
    return {.model = "m.1", .request_id = "", .identity = {.id = id}, .timestamps = {{"REQUEST_START", SteadyTime()}}};
  }

  // Ids of the traces in the file.
  std::vector<std::string> Ids(const std::string& suffix = "") const {
    std::ifstream file(path_ + suffix);
    std::vector<std::string> ids;
    for (const auto& trace : nlohmann::json::parse(file)) ids.push_back(trace["x_request_id"]);
    return ids;
  }

  const std::string path_;
};

TEST_F(TraceWriterTest, OneArrayOfEverything) {
  auto writer = *TraceWriter::Create(path_);
  EXPECT_THAT(Ids(), testing::IsEmpty()) << "it can be read before the first trace";
  for (const char* id : {"a", "b", "c"}) writer->Add(Record(id), 0);
  writer.reset();
  EXPECT_THAT(Ids(), testing::ElementsAre("a", "b", "c"));
}

TEST_F(TraceWriterTest, AFileForSoMany) {
  auto writer = *TraceWriter::Create(path_);
  writer->Add(Record("alone"), 0);
  for (const char* id : {"a", "b", "c", "d", "e"}) writer->Add(Record(id), 2);
  writer->Add(Record("alone again"), 0);
  writer.reset();
  EXPECT_THAT(Ids(), testing::ElementsAre("alone", "alone again"));
  EXPECT_THAT(Ids(".0"), testing::ElementsAre("a", "b"));
  EXPECT_THAT(Ids(".1"), testing::ElementsAre("c", "d"));
  EXPECT_THAT(Ids(".2"), testing::ElementsAre("e"));
}

// Limits the size of this process's files, as a full disk does.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : ignored_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, ignored_);
  }

 private:
  rlimit before_;
  const sighandler_t ignored_;
};

TEST_F(TraceWriterTest, AFullDiskCostsOnlyTheTracesThatDoNotFit) {
  auto writer = *TraceWriter::Create(path_);
  writer->Add(Record("before"), 0);
  while (Ids().empty()) usleep(1000);  // the writer has a thread of its own
  const auto size = std::filesystem::file_size(path_);
  int number = 0;
  for (const uint64_t room : {0, 1, 50}) {  // for nothing, or for a part of a trace
    const FullDisk full(size + room);
    writer->Add(Record("lost"), 0);
    writer->Add(Record("in a numbered file"), 1);  // begun when the trace before it has been tried
    while (!std::filesystem::exists(absl::StrCat(path_, ".", number))) usleep(1000);
    ++number;
    EXPECT_THAT(Ids(), testing::ElementsAre("before")) << room;
  }
  writer->Add(Record("after"), 0);
  writer.reset();
  EXPECT_THAT(Ids(), testing::ElementsAre("before", "after"));
}

TEST_F(TraceWriterTest, BeginsANewFileWhenTheOldOneWasMoved) {
  auto writer = *TraceWriter::Create(path_);
  writer->Add(Record("old"), 0);
  while (Ids().empty()) usleep(1000);
  writer->ReopenFile();  // nothing has happened to the file
  writer->Add(Record("also old"), 0);
  while (Ids().size() < 2) usleep(1000);
  std::filesystem::rename(path_, path_ + ".moved");
  writer->ReopenFile();
  while (!std::filesystem::exists(path_)) usleep(1000);
  writer->Add(Record("new"), 0);
  writer.reset();
  EXPECT_THAT(Ids(), testing::ElementsAre("new"));
  EXPECT_THAT(Ids(".moved"), testing::ElementsAre("old", "also old"));
}

TEST_F(TraceWriterTest, AFileThatCannotBeWrittenIsNamed) {
  const absl::Status status = TraceWriter::Create(testing::TempDir()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), testing::StartsWith("--trace_file: cannot write "));
}

TEST(EncodeTrace, HasWhatThereIs) {
  TraceRecord record = {.model = "m.\"1", .request_id = "mine\n", .identity = {.id = "x", .trace = {{"t", "s"}}}};
  record.timestamps = {{"REQUEST_START", SteadyTime(std::chrono::nanoseconds(5))},
                       {"REQUEST_END", SteadyTime(std::chrono::nanoseconds(9))}};
  const auto trace = nlohmann::json::parse(EncodeTrace(7, record));
  EXPECT_EQ(trace, nlohmann::json::parse(R"({"id": 7, "model_name": "m.\"1", "model_version": 1, "request_id": "mine\n",
      "x_request_id": "x", "trace_id": "t", "parent_span_id": "s",
      "timestamps": [{"name": "REQUEST_START", "ns": 5}, {"name": "REQUEST_END", "ns": 9}]})"));
  record.identity.trace.reset();
  record.request_id.clear();
  EXPECT_EQ(nlohmann::json::parse(EncodeTrace(7, record)).count("trace_id"), 0);
}

}  // namespace
}  // namespace switchyard
