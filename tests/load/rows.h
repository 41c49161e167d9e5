// The rows of the scorecard. Each function measures one row, on servers of its own, and prints its lines.
//
// They take seconds with small sizes and minutes with full ones. Where nothing else is said they serve jargon-moe on
// two workers. A server that does not start ends the program.
#pragma once

#include <string>
#include <vector>

#include "tests/e2e/server_process.h"
#include "tests/load/scorecard.h"

namespace switchyard {

struct ScorecardSettings {
  bool is_quick = false;
  std::string device = "cpu";  // of the workers
  std::string server = kServerProgram;
  std::string testdata = "tests/testdata";
  std::string attack = "tests/load/attack";
  std::string fuzz_folder;  // with the programs of tests/fuzz built under sanitizers; empty when there are none
  std::string tsan;         // how the tests ended under ThreadSanitizer; empty when they did not run
  int soak_minutes = 60;
  std::vector<std::string> phases;        // of row 3; all when empty
  std::vector<std::string> server_flags;  // for every server

  int64_t Size(int64_t full, int64_t quick) const { return is_quick ? quick : full; }
  std::string checkpoint() const { return testdata + "/jargon-moe"; }
};

void MeasureKills(const ScorecardSettings& settings, Scorecard& card);            // 1
void MeasureStuckWorkers(const ScorecardSettings& settings, Scorecard& card);     // 2
void MeasureKillsByPhase(const ScorecardSettings& settings, Scorecard& card);     // 3
void MeasureMutatedInput(const ScorecardSettings& settings, Scorecard& card);     // 4
void MeasureHugeMessages(const ScorecardSettings& settings, Scorecard& card);     // 5
void MeasureCancelledCalls(const ScorecardSettings& settings, Scorecard& card);   // 6
void MeasureHalfOpen(const ScorecardSettings& settings, Scorecard& card);         // 7
void MeasureExpiredRequests(const ScorecardSettings& settings, Scorecard& card);  // 8
void MeasureOverload(const ScorecardSettings& settings, Scorecard& card);         // 9
void MeasureDrains(const ScorecardSettings& settings, Scorecard& card);           // 10
void MeasureFlippedBytes(const ScorecardSettings& settings, Scorecard& card);     // 11
void MeasureRefusedWorkers(const ScorecardSettings& settings, Scorecard& card);   // 12
void MeasureStrangers(const ScorecardSettings& settings, Scorecard& card);        // 13
void MeasureClockSteps(const ScorecardSettings& settings, Scorecard& card);       // 14
void MeasureSoak(const ScorecardSettings& settings, Scorecard& card);             // 15

}  // namespace switchyard
