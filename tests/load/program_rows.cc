// Rows 4 and 14, which are programs of tests: mutated input under sanitizers, and clocks that are set.
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kMutatedLimit[] = "no crash, no leak, no finding of ASan or UBSan";

struct ProgramResult {
  int exit_status = 0;
  std::vector<std::string> passed;  // names with the milliseconds that they took
  std::string first_failure;
};

// Runs a program of GoogleTest in a folder, with additions to its environment.
ProgramResult RunTests(const std::string& program, const std::string& folder,
                       const std::vector<std::string>& environment) {
  std::vector<std::string> arguments = environment;
  // Everything goes to the log, because a pipe that is not read would fill up.
  arguments.insert(arguments.end(), {"/bin/sh", "-c", "cd \"$1\" && exec \"$0\" 1>&2", program, folder});
  const auto process = OrDie(ChildProcess::Start("/usr/bin/env", arguments));
  ProgramResult result{.exit_status = process->Wait(), .passed = {}, .first_failure = ""};
  std::istringstream log(process->Log());
  constexpr std::string_view kPassed = "[       OK ] ", kFailed = "[  FAILED  ] ";
  for (std::string line; std::getline(log, line);) {
    if (absl::StartsWith(line, kPassed.data())) result.passed.push_back(line.substr(kPassed.size()));
    const bool is_failure = absl::StartsWith(line, kFailed.data()) || absl::StrContains(line, "Sanitizer") ||
                            absl::StrContains(line, "runtime error");
    if (is_failure && result.first_failure.empty()) result.first_failure = line;
  }
  return result;
}

}  // namespace

void MeasureMutatedInput(const ScorecardSettings& settings, Scorecard& card) {
  const int64_t num_inputs = settings.Size(1'000'000, 10'000);
  if (settings.fuzz_folder.empty()) {
    card.Print(4,
               NotRun("mutated input", kMutatedLimit, "the programs of `tests/fuzz` were not built under sanitizers"));
    return;
  }
  for (const auto& [target, what] : std::vector<std::pair<std::string, std::string>>{
           {"tests/fuzz/forward_fuzz_test", "requests of the native API, alone and on streams"},
           {"tests/fuzz/infer_fuzz_test", "requests of KServe's API"},
           {"tests/fuzz/worker_protocol_fuzz_test", "messages of the link, and of workers to the front"},
           {"moe/weights/checkpoint/safetensors_fuzz_test", "headers of safetensors"},
           {"moe/weights/config_fuzz_test", "`config.json` of checkpoints of every family"},
           {"server/config/config_file_test", "the server's configuration file"}}) {
    const std::string program = settings.fuzz_folder + "/" + target;
    const ProgramResult result = RunTests(program, program + ".runfiles/switchyard",
                                          {absl::StrCat("SWITCHYARD_FUZZ_ITERATIONS=", num_inputs),
                                           "ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1"});
    card.Print(4, {.tried = absl::StrCat(num_inputs, " mutations each of ", what),
                   .limit = kMutatedLimit,
                   .measured = absl::StrJoin(result.passed, ", "),
                   .demands = {{result.exit_status == 0 && !result.passed.empty(),
                                absl::StrCat("exit status ", result.exit_status, ": ", result.first_failure)}},
                   .not_run = ""});
  }
}

void MeasureClockSteps(const ScorecardSettings& settings, Scorecard& card) {
  const auto num_runs = settings.Size(5, 1);
  constexpr char kProgram[] = "tests/e2e/clock_step_test";
  if (!fs::exists(kProgram)) {
    card.Print(14, NotRun("the wall clock set by ±1 h", "no spurious timeout", "this bundle has no clock_step_test"));
    return;
  }
  size_t num_passed = 0, num_failed_runs = 0;
  std::string first_failure;
  for (int64_t i = 0; i < num_runs; ++i) {
    const ProgramResult result = RunTests(kProgram, ".", {});
    num_passed += result.passed.size();
    num_failed_runs += result.exit_status != 0;
    if (first_failure.empty()) first_failure = result.first_failure;
  }
  card.Print(14,
             {.tried = absl::StrCat("the wall clock set by −1 h and by +1 h under request timeouts, queue timeouts, "
                                    "a worker that stops, and a worker that joins (`clock_step_test`), ",
                                    num_runs, " times"),
              .limit = "no spurious timeout, and none that is late",
              .measured = absl::StrCat(num_passed, " cases passed, ", num_failed_runs, " runs failed"),
              .demands = {{num_failed_runs == 0 && num_passed > 0, first_failure}},
              .not_run = ""});
}

}  // namespace switchyard
