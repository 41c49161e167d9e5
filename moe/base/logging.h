// Logging setup shared by the binaries: spdlog to stderr, as text or as one JSON object per line.
// Everywhere else includes <spdlog/spdlog.h> through this header and uses spdlog::info and friends.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

#include "moe/base/status.h"

namespace switchyard {

struct LoggingOptions {
  std::string level = "info";    // trace, debug, info, warn, error, off
  std::string format = "text";   // text or json
  std::string process = "";      // shown in every line: "front", "worker 3"
};

// Replaces the default logger. InvalidArgument for an unknown level or format. Call before other threads log.
absl::Status SetUpLogging(const LoggingOptions& options);

}  // namespace switchyard
