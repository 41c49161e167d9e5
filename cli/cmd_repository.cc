#include "cli/command.h"

namespace switchyard {
namespace {

// The default timeout. It is this long because loading reads a checkpoint from disk.
constexpr int64_t kLongEnoughMs = 3'600'000;

constexpr char kLoadFooter[] = R"(
NAME is one of the server's --model or a folder of its --model_repository. One that is served is loaded anew: the new
weights take over in one moment, and requests under way are answered by the old ones. NAME.LAYER serves one layer (again).
The change is made even if --timeout_ms passes before it is done.

Examples:
  switchyard load Qwen3-30B-A3B
  switchyard load Qwen3-30B-A3B.47 --target=front.example:8001)";

constexpr char kUnloadFooter[] = R"(
New requests get UNAVAILABLE, those under way are answered; then the memory is freed. NAME.LAYER ends the serving of one
layer; the memory is freed with the last one.

Examples:
  switchyard unload Qwen3-30B-A3B
  switchyard unload Qwen3-30B-A3B.47)";

struct ChangeFlags {
  FrontFlags front;
  std::string name;
};

using ChangeFn = absl::Status (Client::*)(const std::string& name, absl::Duration timeout);

int RunChange(const ChangeFlags& flags, ChangeFn change, const char* done, const Console& console) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectTo(flags.front, /*max_attempts=*/1);
  if (!client.ok()) return ReportUsageError(console, client.status());
  const absl::Status changed = (**client.*change)(flags.name, absl::ZeroDuration());
  if (!changed.ok()) return ReportRpcError(console, flags.front.target, changed);
  if (flags.front.json()) {
    PrintJson(console, {{"model", flags.name}, {"state", done}});
  } else {
    *console.out << flags.name << ": " << done << "\n";
  }
  return kExitOk;
}

void AddChange(CLI::App* app, const char* command_name, const char* what, const char* footer, ChangeFn change,
               const char* done, Console console, int* exit_code) {
  CLI::App* command = app->add_subcommand(command_name, what);
  auto flags = std::make_shared<ChangeFlags>();
  flags->front.timeout_ms = kLongEnoughMs;
  command->add_option("name", flags->name, "NAME of a model, or NAME.LAYER")->required();
  AddFrontFlags(command, &flags->front);
  command->footer(footer);
  command->callback([=] { *exit_code = RunChange(*flags, change, done, console); });
}

}  // namespace

void AddRepositoryCommands(CLI::App* app, Console console, int* exit_code) {
  AddChange(app, "load", "Loads a model, or loads it anew, while the server runs.", kLoadFooter, &Client::LoadModel,
            "loaded", console, exit_code);
  AddChange(app, "unload", "Unloads a model while the server runs.", kUnloadFooter, &Client::UnloadModel, "unloaded",
            console, exit_code);
}

}  // namespace switchyard
