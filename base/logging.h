// Logging setup shared by the binaries: spdlog to stderr, as text or as one JSON object per line. On a terminal, lines
// of text erase the line that they are written on, where another process may be drawing a progress bar. Everywhere else
// includes <spdlog/spdlog.h> through this header and uses spdlog::info and friends.
//
// Lines that a thread logs while a LogFields lives on it carry its fields: behind the message in text, as members of
// their own in JSON.
#pragma once

#include <spdlog/spdlog.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.h"

// Lets status messages be logged as they are.
template <>
struct fmt::formatter<absl::string_view> : fmt::formatter<std::string_view> {
  template <typename Context>
  auto format(absl::string_view text, Context& context) const {
    return fmt::formatter<std::string_view>::format(std::string_view(text.data(), text.size()), context);
  }
};

namespace switchyard {

struct LoggingOptions {
  std::string level = "info";   // trace, debug, info, warn, error, off
  std::string format = "text";  // text or json
  std::string process = "";     // shown in every line: "front", "worker 3"
};

// Whether stderr is a terminal that can erase a line.
bool StderrIsTerminal();
// Goes to the line's first column and erases it.
inline constexpr std::string_view kEraseLine = "\r\033[K";

// Replaces the default logger. InvalidArgument for an unknown level or format. Call before other threads log.
absl::Status SetUpLogging(const LoggingOptions& options);

// How lines of text tell the time: local, as "2026-01-31 12:00:00.000000", or ISO 8601 in UTC. Lines of JSON always
// have the latter. Thread-safe.
enum class LogTimes { kLocal, kIso8601 };
LogTimes CurrentLogTimes();
// FAILED_PRECONDITION when lines are JSON and kLocal is asked for.
absl::Status SetLogTimes(LogTimes times);

// A name, of our own, and a value, whatever it is.
struct LogField {
  std::string_view name;
  std::variant<std::string_view, int64_t> value;
};

// Fields of every line that this thread logs until it ends, beside those of LogFields around it. What the views show
// outlives it.
class LogFields {
 public:
  explicit LogFields(std::vector<LogField> fields);
  ~LogFields();
  LogFields(const LogFields&) = delete;
  LogFields& operator=(const LogFields&) = delete;

 private:
  friend class LogFieldsFlag;
  const std::vector<LogField> fields_;
  const LogFields* const outer_;
};

}  // namespace switchyard
