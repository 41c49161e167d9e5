// Logging setup shared by the binaries: spdlog to stderr, as text or as one JSON object per line. On a terminal, a line
// of text first erases the line that it is written on, because another process may be drawing a progress bar there. All
// other code includes <spdlog/spdlog.h> through this header and uses spdlog::info and friends.
//
// Logging waits for no reader. Lines go through a bounded queue to a thread that writes them
// (base/logging/log_writer.h); what finds no room is dropped and counted. The thread is joined at the end of the
// process, within half a second, by an exit handler. A process that aborts gives the queue as long.
//
// Every log message stays one line that a terminal only shows: control characters are escaped, and long messages and
// fields are cut.
//
// While a thread has a live LogFields, the lines that it logs carry those fields: after the message in text, as
// separate members in JSON.
#pragma once

#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/logging/line_budget.h"
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

// Replaces the default logger, and makes writes to stdout and stderr fail rather than wait (KeepFromBlocking).
// InvalidArgument for an unknown level or format. Call before other threads log.
absl::Status SetUpLogging(const LoggingOptions& options);

// Writes `text` to stderr as it is, behind the lines that were logged before; waits for no reader.
void WriteToLog(std::string_view text);
// Waits up to half a second until everything is written that was logged before; returns whether it is.
bool FlushLog();
// Log lines of this process that were dropped because they were not read in time or could not be written.
int64_t NumLogLinesDropped();

// Logs a line of a kind that strangers or callers may cause, unless `budget` is spent. The next line that is logged
// tells how many were not.
template <typename... Args>
void LogWithin(LineBudget* budget, spdlog::level::level_enum level, fmt::format_string<Args...> format,
               Args&&... args) {
  if (!spdlog::should_log(level)) return;
  const auto refused = budget->Take(Clock::Real().Now());
  if (!refused.has_value()) return;
  spdlog::log(level, "{}{}", fmt::format(format, std::forward<Args>(args)...), OthersLike(*refused));
}

// The time format of text lines: local time, as "2026-01-31 12:00:00.000000", or ISO 8601 in UTC. Lines of JSON always
// have ISO 8601, in local time with the offset from UTC. Thread-safe.
enum class LogTimes { kLocal, kIso8601 };
LogTimes CurrentLogTimes();
// FAILED_PRECONDITION when lines are JSON and kLocal is asked for.
absl::Status SetLogTimes(LogTimes times);

// A field of a log line. The name comes from our own code and is written as it is; the value may be anything and is
// escaped.
struct LogField {
  std::string_view name;
  std::variant<std::string_view, int64_t> value;
};

// Adds its fields to every line that this thread logs during its lifetime, beside those of enclosing LogFields. The
// text that the views refer to must outlive it.
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
