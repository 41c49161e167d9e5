// --config=FILE: the flags of a program in a file, as a message in protobuf's text format with one field per flag.
//
// CLI11 takes the file's values where the command line has none, and checks them as it checks flags. Errors name line,
// column and what was expected there.
#pragma once

#include <CLI/CLI.hpp>
#include <istream>
#include <string>
#include <vector>

#include "base/status.h"

namespace switchyard {

// The fields that are set, by name, each with its values as the flag takes them. A model is NAME=LOCATION. Text over 1
// MiB and whatever is no ServerConfig is InvalidArgument, with the first error's place.
absl::StatusOr<std::vector<CLI::ConfigItem>> ParseServerConfig(const std::string& text);

// For CLI::App::config_formatter.
class ServerConfigReader final : public CLI::Config {
 public:
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
  // Empty: files are not written.
  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return ""; }
};

}  // namespace switchyard
