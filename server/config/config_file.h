// --config=FILE: a program's flags in a file, as a message in protobuf's text format with one field per flag.
//
// CLI11 uses the file's values for flags that the command line does not give, and checks them as it checks flags.
// Errors name line, column and what was expected there.
#pragma once

#include <CLI/CLI.hpp>
#include <istream>
#include <string>
#include <vector>

#include "base/status.h"

namespace switchyard {

// Returns the fields that are set, by name, each with its values in the form that the flag takes. A model becomes
// NAME=LOCATION. InvalidArgument for text over 1 MiB, and, with the place of the first error, for text that is no
// ServerConfig.
absl::StatusOr<std::vector<CLI::ConfigItem>> ParseServerConfig(const std::string& text);

// For use with CLI::App::config_formatter.
class ServerConfigReader final : public CLI::Config {
 public:
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
  // Always empty, because files are not written.
  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return ""; }
};

}  // namespace switchyard
