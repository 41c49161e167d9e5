// Measures the scorecard of robustness and prints it as a table in Markdown. tests/load/run.sh builds and runs it.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <vector>

#include "tests/load/rows.h"

namespace switchyard {
namespace {

using MeasureFn = void (*)(const ScorecardSettings&, Scorecard&);

// By number; the first is row 1.
constexpr MeasureFn kRows[] = {MeasureKills,        MeasureStuckWorkers,   MeasureKillsByPhase, MeasureMutatedInput,
                               MeasureHugeMessages, MeasureCancelledCalls, MeasureHalfOpen,     MeasureExpiredRequests,
                               MeasureOverload,     MeasureDrains,         MeasureFlippedBytes, MeasureRefusedWorkers,
                               MeasureStrangers,    MeasureClockSteps,     MeasureSoak};
constexpr int kNumRows = std::size(kRows);

int Main(int argc, char** argv) {
  ScorecardSettings settings;
  std::vector<int> rows;
  CLI::App app{"Measures the scorecard of robustness. The exit code is 1 when a row is missed."};
  app.add_option("--rows", rows, "the rows to measure, as 1,2,9; all when it is not given")
      ->delimiter(',')
      ->check(CLI::Range(1, kNumRows));
  app.add_flag("--quick", settings.is_quick, "small sizes, which only show that the rows run");
  app.add_option("--soak_minutes", settings.soak_minutes, "duration of the soak")->check(CLI::Range(1, 10'000));
  app.add_option("--phases", settings.phases, "phases of row 3, as join,load; all when it is not given")
      ->delimiter(',');
  app.add_option("--device", settings.device, "device of the workers");
  app.add_option("--server", settings.server, "the front's program, with the worker's beside it");
  app.add_option("--testdata", settings.testdata, "the folder with jargon-moe and golden_qwen3_moe");
  app.add_option("--attack", settings.attack, "the attacking program");
  app.add_option("--fuzz_folder", settings.fuzz_folder, "bazel-bin of a build under AddressSanitizer");
  app.add_option("--tsan", settings.tsan, "how the tests ended under ThreadSanitizer");
  app.add_option("--server_flag", settings.server_flags,
                 "for every server, as --worker_threads=4; repeat it for several");
  CLI11_PARSE(app, argc, argv);
  Scorecard card(settings.is_quick);
  for (int row = 1; row <= kNumRows; ++row) {
    const bool is_wanted = rows.empty() || std::count(rows.begin(), rows.end(), row) > 0;
    if (!is_wanted) continue;
    std::fprintf(stderr, "row %d …\n", row);
    kRows[row - 1](settings, card);
  }
  return card.has_missed() ? 1 : 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
