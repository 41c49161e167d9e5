#include "base/logging.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/escape_controls.h"
#include "base/mutex.h"

namespace switchyard {
namespace {

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

// %J: the message as a JSON string, quotes included.
class JsonMessageFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& msg, const std::tm&, spdlog::memory_buf_t& dest) override {
    const std::string quoted = QuotedJson({msg.payload.data(), msg.payload.size()});
    dest.append(quoted.data(), quoted.data() + quoted.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<JsonMessageFlag>(); }
};

// %E: the message on one line of text. Parts of it may come from callers, who must not forge lines.
class TextMessageFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& msg, const std::tm&, spdlog::memory_buf_t& dest) override {
    const std::string escaped = EscapeControls({msg.payload.data(), msg.payload.size()});
    dest.append(escaped.data(), escaped.data() + escaped.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<TextMessageFlag>(); }
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
    const std::string value = text == nullptr ? std::to_string(std::get<int64_t>(field.value))
                              : is_json_      ? QuotedJson(*text)
                                              : ShownInText(*text);
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
  formatter->add_flag<JsonMessageFlag>('J').add_flag<TextMessageFlag>('E').add_flag<LogFieldsFlag>('K', format.is_json);
  if (format.is_json) {
    formatter->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%f%z","level":"%l","process":")" + format.process +
                           R"(","message":%J%K})");
  } else {
    const std::string erase(StderrIsTerminal() ? kEraseLine : "");
    formatter->set_pattern(erase + (utc ? "%Y-%m-%dT%H:%M:%S.%fZ" : "%Y-%m-%d %H:%M:%S.%f") + " %^%L%$ [" +
                           format.process + "] %E%K");
  }
  return formatter;
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
  auto logger = std::make_shared<spdlog::logger>(options.process, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  {
    MutexLock lock(&format_mu);
    const bool is_json = options.format == "json";
    CurrentFormat() = {is_json, options.process, is_json ? LogTimes::kIso8601 : LogTimes::kLocal};
    logger->set_formatter(MakeFormatter(CurrentFormat()));
  }
  logger->set_level(level);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

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
