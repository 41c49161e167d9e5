// The secret that workers show and the front asks for, as both read it from --worker_token_file.
#pragma once

#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/ascii.h"
#include "moe/base/status.h"

namespace switchyard {

// The file's text without the white space around it. NotFound, naming the flag, when it cannot be read.
inline absl::StatusOr<std::string> ReadTokenFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("--worker_token_file=", path, ": cannot be read"));
  std::stringstream text;
  text << file.rdbuf();
  return std::string(absl::StripAsciiWhitespace(text.str()));
}

}  // namespace switchyard
