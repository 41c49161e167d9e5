#include "server/observe/trace_writer.h"

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/logging.h"

namespace switchyard {
namespace {

// The most traces that wait for the disk.
constexpr size_t kMaxWaiting = 4096;

constexpr std::string_view kBegin = "[\n";
constexpr std::string_view kEnd = "\n]\n";

absl::Status FileError(const std::string& path, const char* what) {
  return absl::FailedPreconditionError(absl::StrCat("--trace_file: cannot ", what, " ", path, ": ", strerror(errno)));
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

void TraceWriter::Loop() {
  while (true) {
    std::deque<Item> items;
    {
      MutexLock lock(&mu_);
      while (items_.empty() && !stopping_) work_.Wait(&mu_);
      if (items_.empty()) return;
      items.swap(items_);
    }
    absl::Status status;
    for (const Item& item : items) {
      status = Write(item);
      if (!status.ok()) break;
    }
    if (status.ok()) status = Complete();
    if (!status.ok() && errors_.Take(Clock::Real().Now()).has_value()) spdlog::error("{}", status.message());
  }
}

absl::Status TraceWriter::Write(const Item& item) {
  const bool is_numbered = item.traces_per_file > 0;
  const bool is_full = is_numbered && place_.num_traces >= item.traces_per_file;
  if (file_ == nullptr || is_numbered != is_numbered_ || is_full) {
    if (file_ != nullptr) SY_RETURN_IF_ERROR(Complete());
    if (!is_numbered_) whole_ = place_;
    is_numbered_ = is_numbered;
    SY_RETURN_IF_ERROR(is_numbered ? Open(absl::StrCat(path_, ".", next_number_++)) : Reopen());
  }
  if (place_.num_traces > 0) SY_RETURN_IF_ERROR(Append(",\n"));
  SY_RETURN_IF_ERROR(Append(EncodeTrace(next_id_++, item.record)));
  ++place_.num_traces;
  return absl::OkStatus();
}

absl::Status TraceWriter::Open(const std::string& path) {
  file_.reset(std::fopen(path.c_str(), "we"));
  if (file_ == nullptr) return FileError(path, "write");
  place_ = {};
  SY_RETURN_IF_ERROR(Append(std::string(kBegin)));
  return Complete();
}

absl::Status TraceWriter::Reopen() {
  file_.reset(std::fopen(path_.c_str(), "r+e"));
  if (file_ == nullptr) return Open(path_);  // the file was removed meanwhile
  place_ = whole_;
  return absl::OkStatus();
}

absl::Status TraceWriter::Append(const std::string& text) {
  if (fseeko(file_.get(), place_.end, SEEK_SET) != 0 ||
      std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size()) {
    return FileError(path_, "write");
  }
  place_.end += static_cast<int64_t>(text.size());
  return absl::OkStatus();
}

absl::Status TraceWriter::Complete() {
  if (fseeko(file_.get(), place_.end, SEEK_SET) != 0 ||
      std::fwrite(kEnd.data(), 1, kEnd.size(), file_.get()) != kEnd.size() || std::fflush(file_.get()) != 0) {
    return FileError(path_, "write");
  }
  return absl::OkStatus();
}

}  // namespace switchyard
