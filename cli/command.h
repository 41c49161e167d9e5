// Shared parts of the subcommands of `switchyard`: where they print, their exit codes, and the flags that name the
// front.
//
// Each cmd_NAME.cc registers one subcommand with its flags and help. CLI11 runs the chosen subcommand while it parses,
// and the subcommand stores its exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "client/client.h"

namespace switchyard {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // output beyond tolerance, or every request of a load test failed
inline constexpr int kExitUsage = 2;   // wrong flags or files
inline constexpr int kExitRpc = 3;     // the front did not answer, or answered with an error

// Where a command writes. Both streams outlive it.
struct Console {
  std::ostream* out;  // results
  std::ostream* err;  // errors and progress
};

struct FrontFlags {
  std::string target = "127.0.0.1:8001";
  int64_t timeout_ms = 30'000;
  std::string format = "text";
  bool tls = false;
  std::string tls_ca, tls_cert, tls_key, token_file;

  bool json() const { return format == "json"; }
  absl::Duration timeout() const { return absl::Milliseconds(timeout_ms); }
};

// Adds --target, --timeout_ms, --format, --tls… and --token_file.
void AddFrontFlags(CLI::App* command, FrontFlags* flags);

absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const FrontFlags& flags, int max_attempts);

// Both print an error and return the exit code for it.
int ReportUsageError(const Console& console, const absl::Status& status);
int ReportRpcError(const Console& console, const std::string& target, const absl::Status& status);

void PrintJson(const Console& console, const nlohmann::ordered_json& json);

// A name such as "fp32"; "unknown" for a value without a name.
std::string TypeName(v1::DataType dtype);

void AddInferCommand(CLI::App* app, Console console, int* exit_code);
void AddModelsCommand(CLI::App* app, Console console, int* exit_code);
void AddRepositoryCommands(CLI::App* app, Console console, int* exit_code);  // load and unload
void AddStatusCommand(CLI::App* app, Console console, int* exit_code);
void AddBenchCommand(CLI::App* app, Console console, int* exit_code);
void AddInspectCommand(CLI::App* app, Console console, int* exit_code);

}  // namespace switchyard
