// Runs the simulated world with many seeds, and says what failed and which faults struck where.
//
//   simulate --seeds=1000000                 a million
//   simulate --seeds=100000 --first_seed=5   other ones
//   simulate --replay=42 --trace             one, with every event
//   simulate --replay=42 --log=info          one, with the front's log
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "base/clock.h"
#include "base/logging/logging.h"
#include "tests/simulation/world.h"

namespace switchyard::simulation {
namespace {

struct Flags {
  uint64_t seeds = 1000, first_seed = 1;
  int64_t replay = -1;
  double seconds = 0;
  int max_failures = 5;
  bool trace = false;
  std::string log = "off";
};

int Replay(const Flags& flags) {
  const Outcome outcome = RunWorld(static_cast<uint64_t>(flags.replay), {.prints = flags.trace});
  std::printf("%s%ld events, %ld formations, %ld of %ld requests answered, hash %016lx\n",
              outcome.ok() ? outcome.history.c_str() : outcome.Report().c_str(), outcome.num_events,
              outcome.num_formations, outcome.num_answers, outcome.num_requests, outcome.hash);
  return outcome.ok() ? 0 : 1;
}

int RunMany(const Flags& flags) {
  const SteadyTime begin = Clock::Real().Now();
  Coverage coverage;
  Nanos slowest{};
  uint64_t slowest_seed = 0, num_run = 0;
  int64_t num_events = 0, num_formations = 0, num_answers = 0;
  int num_failures = 0;
  const auto elapsed = [&] { return static_cast<double>(MicrosBetween(begin, Clock::Real().Now())) * 1e-6; };
  for (uint64_t seed = flags.first_seed; seed < flags.first_seed + flags.seeds; ++seed) {
    if (flags.seconds > 0 && elapsed() > flags.seconds) break;
    const Outcome outcome = RunWorld(seed);
    ++num_run;
    coverage.Add(outcome.coverage);
    num_events += outcome.num_events;
    num_formations += outcome.num_formations;
    num_answers += outcome.num_answers;
    if (outcome.recovery > slowest) {
      slowest = outcome.recovery;
      slowest_seed = seed;
    }
    if (outcome.ok()) continue;
    std::printf("%s\n", outcome.Report().c_str());
    std::fflush(stdout);
    if (++num_failures == flags.max_failures) break;
  }
  std::printf("%s", coverage.ToString().c_str());
  std::printf("%lu seeds in %.1f s, %.2f ms each; %ld faults, %ld events, %ld formations, %ld right answers\n", num_run,
              elapsed(), elapsed() * 1e3 / static_cast<double>(std::max<uint64_t>(num_run, 1)), coverage.num_struck(),
              num_events, num_formations, num_answers);
  std::printf("the slowest recovery took %.1f simulated seconds (seed %lu)\n",
              static_cast<double>(slowest.count()) * 1e-9, slowest_seed);
  std::printf("%d failed\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Runs the simulated world with many seeds.");
  app.footer(
      "Examples:\n"
      "  simulate --seeds=1000000            a million seeds, and a table of which faults struck where\n"
      "  simulate --seconds=600              as many seeds as ten minutes allow, from --first_seed on\n"
      "  simulate --replay=42 --trace        one seed, with every event\n"
      "  simulate --replay=42 --log=debug    one seed, with the front's log");
  app.add_option("--seeds", flags.seeds, "How many seeds to run")->capture_default_str();
  app.add_option("--first_seed", flags.first_seed, "The first of them; the others follow it")->capture_default_str();
  app.add_option("--seconds", flags.seconds, "End after so many seconds; 0 for when all seeds are run")
      ->capture_default_str();
  app.add_option("--max_failures", flags.max_failures, "End after so many failures")->capture_default_str();
  app.add_option("--replay", flags.replay, "Run this seed alone");
  app.add_flag("--trace", flags.trace, "Print every event of the seed that is replayed");
  app.add_option("--log", flags.log, "Level of the front's log, on stderr")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::from_str(flags.log));
  if (flags.seconds > 0 && app.count("--seeds") == 0) flags.seeds = UINT64_MAX - flags.first_seed;
  return flags.replay >= 0 ? Replay(flags) : RunMany(flags);
}

}  // namespace
}  // namespace switchyard::simulation

int main(int argc, char** argv) { return switchyard::simulation::Main(argc, argv); }
