// Logging setup shared by the binaries: spdlog to stderr, as text or as one JSON object per line. On a terminal, lines
// of text erase the line that they are written on, where another process may be drawing a progress bar. Everywhere else
// includes <spdlog/spdlog.h> through this header and uses spdlog::info and friends.
#pragma once

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

#include "moe/base/status.h"

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

}  // namespace switchyard
