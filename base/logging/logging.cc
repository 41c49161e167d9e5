#include "base/logging/logging.h"

#include <poll.h>
#include <signal.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/sink.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/logging/log_text.h"
#include "base/logging/log_writer.h"
#include "base/mutex.h"
#include "base/process/bounded_write.h"

namespace switchyard {
namespace {

constexpr size_t kMaxQueueBytes = 1 << 20;
constexpr size_t kMaxMessageBytes = 4096;
constexpr size_t kMaxFieldBytes = 256;

// How long the end of the process, or a flush, waits for the log's reader.
constexpr std::chrono::milliseconds kGrace{500};

// The formatter's settings, set together with the logger.
struct Format {
  bool is_json = false;
  std::string process;
  LogTimes times = LogTimes::kLocal;
};

Mutex format_mu;
Format& CurrentFormat() ABSL_EXCLUSIVE_LOCKS_REQUIRED(format_mu) {
  static Format* const format = new Format;
  return *format;
}

thread_local const LogFields* innermost_fields = nullptr;

std::string QuotedJson(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// A value as lines of text show it: quoted and escaped when it is empty or has any character but ASCII letters, digits
// and punctuation other than a quote.
std::string ShownInText(std::string_view text) {
  const bool is_plain = !text.empty() && std::all_of(text.begin(), text.end(),
                                                     [](unsigned char c) { return c > ' ' && c < 0x7f && c != '"'; });
  return is_plain ? std::string(text) : QuotedJson(text);
}

// %Q: the message, cut; in JSON as a string, quotes included, in text escaped.
class MessageFlag final : public spdlog::custom_flag_formatter {
 public:
  explicit MessageFlag(bool is_json) : is_json_(is_json) {}

  void format(const spdlog::details::log_msg& msg, const std::tm&, spdlog::memory_buf_t& dest) override {
    const std::string cut = CutForLog({msg.payload.data(), msg.payload.size()}, kMaxMessageBytes);
    const std::string shown = is_json_ ? QuotedJson(cut) : EscapedForLog(cut);
    dest.append(shown.data(), shown.data() + shown.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<MessageFlag>(is_json_); }

 private:
  const bool is_json_;
};

}  // namespace

// %K: the fields of the thread that logs, each after a blank (name=value) or a comma ("name":value). Sinks format on
// the thread that logs.
class LogFieldsFlag final : public spdlog::custom_flag_formatter {
 public:
  explicit LogFieldsFlag(bool is_json) : is_json_(is_json) {}

  void format(const spdlog::details::log_msg&, const std::tm&, spdlog::memory_buf_t& dest) override {
    for (const LogFields* fields = innermost_fields; fields != nullptr; fields = fields->outer_) {
      for (const LogField& field : fields->fields_) {
        const std::string text = Show(field);
        dest.append(text.data(), text.data() + text.size());
      }
    }
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<LogFieldsFlag>(is_json_); }

 private:
  std::string Show(const LogField& field) const {
    const auto* const text = std::get_if<std::string_view>(&field.value);
    const std::string cut = text == nullptr ? "" : CutForLog(*text, kMaxFieldBytes);
    const std::string value = text == nullptr ? std::to_string(std::get<int64_t>(field.value))
                              : is_json_      ? QuotedJson(cut)
                                              : ShownInText(cut);
    const std::string name(field.name);
    return is_json_ ? absl::StrCat(",\"", name, "\":", value) : absl::StrCat(" ", name, "=", value);
  }

  const bool is_json_;
};

namespace {

std::unique_ptr<spdlog::formatter> MakeFormatter(const Format& format) {
  const bool utc = !format.is_json && format.times == LogTimes::kIso8601;
  auto formatter = std::make_unique<spdlog::pattern_formatter>(utc ? spdlog::pattern_time_type::utc
                                                                   : spdlog::pattern_time_type::local);
  formatter->add_flag<MessageFlag>('Q', format.is_json).add_flag<LogFieldsFlag>('K', format.is_json);
  if (format.is_json) {
    formatter->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%f%z","level":"%l","process":")" + format.process +
                           R"(","message":%Q%K})");
  } else {
    const std::string erase(StderrIsTerminal() ? kEraseLine : "");
    formatter->set_pattern(erase + (utc ? "%Y-%m-%dT%H:%M:%S.%fZ" : "%Y-%m-%d %H:%M:%S.%f") + " %^%L%$ [" +
                           format.process + "] %Q%K");
  }
  return formatter;
}

// Formats lines on the thread that logs, because LogFields are that thread's, and hands them to the writer.
class WriterSink final : public spdlog::sinks::sink {
 public:
  WriterSink() : writer_(STDERR_FILENO, kMaxQueueBytes, [this](int64_t lines) { return TellDrops(lines); }) {}

  void log(const spdlog::details::log_msg& msg) override { writer_.Write(Format(msg)); }
  void flush() override {}  // the writer waits for nothing
  void set_pattern(const std::string& pattern) override {
    set_formatter(std::make_unique<spdlog::pattern_formatter>(pattern));
  }
  void set_formatter(std::unique_ptr<spdlog::formatter> formatter) override {
    MutexLock lock(&mu_);
    formatter_ = std::move(formatter);
  }

  LogWriter& writer() { return writer_; }

 private:
  std::string Format(const spdlog::details::log_msg& msg) {
    spdlog::memory_buf_t line;
    MutexLock lock(&mu_);
    formatter_->format(msg, line);
    return {line.data(), line.size()};
  }

  std::string TellDrops(int64_t lines) {
    const std::string message = absl::StrCat(lines, " log lines are missing here, because they were not read in time");
    return Format({spdlog::string_view_t(), spdlog::level::warn, message});
  }

  Mutex mu_;
  std::unique_ptr<spdlog::formatter> formatter_ ABSL_GUARDED_BY(mu_) = std::make_unique<spdlog::pattern_formatter>();
  LogWriter writer_;  // last, because its thread uses the others
};

// Null until logging is set up. The sink lives as long as the process, because threads may log until the end.
std::shared_ptr<WriterSink>* process_sink = nullptr;

void FinishLogging() { (*process_sink)->writer().Finish(kGrace); }

// Gives the writer's thread time for what was logged, such as the reason for the abort, and lets the signal end the
// process. Calls only what a signal handler may.
void AwaitWriter(int signal) {
  constexpr int kStepMs = 5;
  for (auto waited = kGrace.zero(); waited < kGrace && !(*process_sink)->writer().is_idle();
       waited += std::chrono::milliseconds(kStepMs)) {
    poll(nullptr, 0, kStepMs);
  }
  raise(signal);
}

// std::terminate writes to stderr itself; this logs the exception instead.
[[noreturn]] void LogAndAbort() {
  std::string reason = "no exception";
  try {
    if (std::current_exception() != nullptr) std::rethrow_exception(std::current_exception());
  } catch (const std::exception& error) {
    reason = error.what();
  } catch (...) {
    reason = "an exception of an unknown type";
  }
  spdlog::critical("the program has to end: {}", reason);
  std::abort();
}

// Takes the signals that crash a process, unless a sanitizer or another library handles them.
void AwaitWriterOnCrashes() {
  struct sigaction action = {};
  action.sa_handler = AwaitWriter;
  action.sa_flags = SA_RESETHAND;  // the second signal ends the process, on return from the handler
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE}) {
    struct sigaction before = {};
    if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler == SIG_DFL) sigaction(signal, &action, nullptr);
  }
}

std::shared_ptr<WriterSink> ProcessSink() {
  if (process_sink == nullptr) {
    KeepFromBlocking(STDOUT_FILENO);
    KeepFromBlocking(STDERR_FILENO);
    process_sink = new std::shared_ptr<WriterSink>(std::make_shared<WriterSink>());
    std::atexit(FinishLogging);
    AwaitWriterOnCrashes();
    std::set_terminate(LogAndAbort);
  }
  return *process_sink;
}

}  // namespace

bool StderrIsTerminal() {
  if (isatty(STDERR_FILENO) == 0) return false;
  const char* terminal = getenv("TERM");
  return terminal != nullptr && std::string_view(terminal) != "dumb";
}

absl::Status SetUpLogging(const LoggingOptions& options) {
  if (options.format != "text" && options.format != "json") {
    return absl::InvalidArgumentError(absl::StrCat("--log_format: expected text or json, found ", options.format));
  }
  const auto level = spdlog::level::from_str(options.level == "warn" ? "warning" : options.level);
  if (level == spdlog::level::off && options.level != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("--log_level: expected trace, debug, info, warn, error or off, found ", options.level));
  }
  auto logger = std::make_shared<spdlog::logger>(options.process, ProcessSink());
  {
    MutexLock lock(&format_mu);
    const bool is_json = options.format == "json";
    CurrentFormat() = {is_json, options.process, is_json ? LogTimes::kIso8601 : LogTimes::kLocal};
    logger->set_formatter(MakeFormatter(CurrentFormat()));
  }
  logger->set_level(level);
  // spdlog would print an error of a line's format itself, to stderr.
  logger->set_error_handler([](const std::string& error) { WriteToLog(absl::StrCat("log line lost: ", error, "\n")); });
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

void WriteToLog(std::string_view text) {
  if (process_sink != nullptr) return (*process_sink)->writer().Write(std::string(text));
  WriteWithin(STDERR_FILENO, text, kGrace);
}

bool FlushLog() { return process_sink == nullptr || (*process_sink)->writer().Flush(kGrace); }

int64_t NumLogLinesDropped() { return process_sink == nullptr ? 0 : (*process_sink)->writer().num_dropped(); }

LogTimes CurrentLogTimes() {
  MutexLock lock(&format_mu);
  return CurrentFormat().times;
}

absl::Status SetLogTimes(LogTimes times) {
  MutexLock lock(&format_mu);
  if (CurrentFormat().times == times) return absl::OkStatus();
  if (CurrentFormat().is_json) {
    return absl::FailedPreconditionError("lines are JSON (--log_format=json), whose times are ISO 8601");
  }
  CurrentFormat().times = times;
  spdlog::default_logger()->set_formatter(MakeFormatter(CurrentFormat()));
  return absl::OkStatus();
}

LogFields::LogFields(std::vector<LogField> fields) : fields_(std::move(fields)), outer_(innermost_fields) {
  innermost_fields = this;
}

LogFields::~LogFields() { innermost_fields = outer_; }

}  // namespace switchyard
