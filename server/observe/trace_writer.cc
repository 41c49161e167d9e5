#include "server/observe/trace_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/logging/logging.h"
#include "base/process/exhausted.h"

namespace switchyard {
namespace {

// The most traces that wait for the disk.
constexpr size_t kMaxWaiting = 4096;

constexpr std::string_view kBegin = "[\n";
constexpr std::string_view kEnd = "\n]\n";

absl::Status FileError(const std::string& path, const char* what) {
  return absl::FailedPreconditionError(
      absl::StrCat("--trace_file: cannot ", what, " ", path, ": ", DescribeErrno(errno)));
}

}  // namespace

std::string EncodeTrace(int64_t id, const TraceRecord& record) {
  nlohmann::ordered_json trace;
  trace["id"] = id;
  trace["model_name"] = record.model;
  trace["model_version"] = 1;
  if (!record.request_id.empty()) trace["request_id"] = record.request_id;
  trace["x_request_id"] = record.identity.id;
  if (record.identity.trace.has_value()) {
    trace["trace_id"] = record.identity.trace->trace_id;
    trace["parent_span_id"] = record.identity.trace->span_id;
  }
  for (const auto& [name, time] : record.timestamps) {
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
    trace["timestamps"].push_back({{"name", name}, {"ns", ns}});
  }
  return trace.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Create(const std::string& path) {
  std::unique_ptr<TraceWriter> writer(new TraceWriter(path));
  SY_RETURN_IF_ERROR(writer->Open(path));
  writer->thread_ = std::thread([raw = writer.get()] { raw->Loop(); });
  return writer;
}

TraceWriter::TraceWriter(std::string path) : path_(std::move(path)) {}

TraceWriter::~TraceWriter() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    work_.SignalAll();
  }
  thread_.join();
}

void TraceWriter::Add(TraceRecord record, int64_t traces_per_file) {
  {
    MutexLock lock(&mu_);
    if (items_.size() < kMaxWaiting) {
      items_.push_back({std::move(record), traces_per_file});
      work_.Signal();
      return;
    }
  }
  if (const auto more = drops_.Take(Clock::Real().Now()); more.has_value()) {
    spdlog::warn("traces come faster than {} takes them: {} dropped", path_, *more + 1);
  }
}

void TraceWriter::ReopenFile() {
  MutexLock lock(&mu_);
  reopening_ = true;
  work_.Signal();
}

void TraceWriter::Loop() {
  while (true) {
    std::deque<Item> items;
    bool reopen;
    {
      MutexLock lock(&mu_);
      while (items_.empty() && !reopening_ && !stopping_) work_.Wait(&mu_);
      if (items_.empty() && !reopening_) return;
      items.swap(items_);
      reopen = std::exchange(reopening_, false);
    }
    // A numbered file stays as it is. The one of --trace_file is looked at when it is opened again.
    absl::Status status;
    if (reopen && !is_numbered_ && !IsStillThere()) status = Open(path_);
    status.Update(WriteAll(items));
    if (!status.ok() && errors_.Take(Clock::Real().Now()).has_value()) spdlog::error("{}", status.message());
  }
}

absl::Status TraceWriter::WriteAll(const std::deque<Item>& items) {
  absl::Status status;
  for (const Item& item : items) status.Update(Write(item));
  status.Update(Flush());
  return status;
}

absl::Status TraceWriter::Write(const Item& item) {
  const bool is_numbered = item.traces_per_file > 0;
  const bool is_full = is_numbered && place_.num_traces + batch_traces_ >= item.traces_per_file;
  absl::Status status;
  if (!file_.valid() || is_numbered != is_numbered_ || is_full) {
    status = Flush();
    if (!is_numbered_) whole_ = place_;
    is_numbered_ = is_numbered;
    status.Update(is_numbered ? Open(absl::StrCat(path_, ".", next_number_++)) : Reopen());
    if (!file_.valid()) return status;
  }
  absl::StrAppend(&batch_, place_.num_traces + batch_traces_ > 0 ? ",\n" : "", EncodeTrace(next_id_++, item.record));
  ++batch_traces_;
  return status;
}

absl::Status TraceWriter::Open(const std::string& path) {
  place_ = {};
  file_.reset(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file_.valid()) return FileError(path, "write");
  absl::Status written = WriteAt(0, std::string(kBegin).append(kEnd));
  if (written.ok()) place_.end = static_cast<int64_t>(kBegin.size());
  if (!written.ok()) file_.reset();  // to be opened anew for the next trace
  return written;
}

absl::Status TraceWriter::Reopen() {
  place_ = whole_;
  file_.reset(open(path_.c_str(), O_RDWR | O_CLOEXEC));
  struct stat found = {};
  const bool is_as_left = file_.valid() && place_.end > 0 && fstat(file_.get(), &found) == 0 &&
                          found.st_size == place_.end + static_cast<int64_t>(kEnd.size());
  return is_as_left ? absl::OkStatus() : Open(path_);
}

bool TraceWriter::IsStillThere() const {
  struct stat named = {}, opened = {};
  return file_.valid() && stat(path_.c_str(), &named) == 0 && fstat(file_.get(), &opened) == 0 &&
         named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
}

absl::Status TraceWriter::Flush() {
  if (batch_.empty()) return absl::OkStatus();
  const int64_t size = static_cast<int64_t>(batch_.size());
  const int64_t num_traces = std::exchange(batch_traces_, 0);
  absl::Status written = WriteAt(place_.end, batch_.append(kEnd));
  batch_.clear();
  if (written.ok()) {
    place_.end += size;
    place_.num_traces += num_traces;
    return written;
  }
  // The end of the array was here before, so the disk has room for it.
  const bool is_whole =
      WriteAt(place_.end, kEnd).ok() && ftruncate(file_.get(), place_.end + static_cast<int64_t>(kEnd.size())) == 0;
  return Annotate(written, absl::StrCat("traces lost: ", num_traces, is_whole ? "" : ", and the file is damaged"));
}

absl::Status TraceWriter::WriteAt(int64_t offset, std::string_view text) const {
  while (!text.empty()) {
    const ssize_t count = pwrite(file_.get(), text.data(), text.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(path_, "write");
    offset += count;
    text.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
