#include "rpc/wire_options.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/process/bounded_write.h"

namespace switchyard {
namespace {

constexpr char kVariable[] = "SWITCHYARD_GRPC_ARGS";

std::vector<WireArg> ArgsOfEnvironment() {
  const char* text = std::getenv(kVariable);
  auto args = ParseWireArgs(text == nullptr ? "" : text);
  if (args.ok()) return *std::move(args);
  WriteWithin(STDERR_FILENO, absl::StrCat(kVariable, ": ", args.status().message(), "\n"), std::chrono::seconds(1));
  return {};
}

}  // namespace

absl::StatusOr<std::vector<WireArg>> ParseWireArgs(const std::string& text) {
  std::vector<WireArg> args;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const size_t equals = part.rfind('=');
    WireArg arg;
    if (equals == absl::string_view::npos || equals == 0 || !absl::SimpleAtoi(part.substr(equals + 1), &arg.value)) {
      return absl::InvalidArgumentError(absl::StrCat("expected NAME=NUMBER, found '", part, "'"));
    }
    arg.name = std::string(part.substr(0, equals));
    args.push_back(std::move(arg));
  }
  return args;
}

void TuneServer(grpc::ServerBuilder& builder) {
  for (const WireArg& arg : ArgsOfEnvironment()) builder.AddChannelArgument(arg.name, arg.value);
}

void TuneChannel(grpc::ChannelArguments* args) {
  for (const WireArg& arg : ArgsOfEnvironment()) args->SetInt(arg.name, arg.value);
}

}  // namespace switchyard
