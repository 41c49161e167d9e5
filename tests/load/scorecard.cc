#include "tests/load/scorecard.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace switchyard {
namespace {

// A cell of a table ends at a bar, and a row at the end of the line.
std::string Cell(const std::string& text) { return absl::StrReplaceAll(text, {{"|", "\\|"}, {"\n", " "}}); }

std::string Verdict(const ScorecardLine& line) {
  if (!line.not_run.empty()) return absl::StrCat("not run: ", line.not_run);
  std::vector<std::string> missed;
  for (const auto& [holds, what] : line.demands) {
    if (!holds) missed.push_back(what);
  }
  return missed.empty() ? "holds" : absl::StrCat("MISSED: ", absl::StrJoin(missed, ", "));
}

}  // namespace

ScorecardLine NotRun(const std::string& tried, const std::string& limit, const std::string& reason) {
  return {.tried = tried, .limit = limit, .measured = "–", .demands = {}, .not_run = reason};
}

void Scorecard::Print(int row, const ScorecardLine& line) {
  if (!has_head_) {
    if (is_quick_) {
      std::printf("Small sizes (`--quick`): these figures show that the rows run, not that they hold.\n\n");
    }
    std::printf("| # | tried | limit | measured | verdict |\n|---|---|---|---|---|\n");
    has_head_ = true;
  }
  const std::string verdict = Verdict(line);
  std::printf("| %d | %s | %s | %s | %s |\n", row, Cell(line.tried).c_str(), Cell(line.limit).c_str(),
              Cell(line.measured).c_str(), Cell(verdict).c_str());
  std::fflush(stdout);
  has_missed_ = has_missed_ || verdict.rfind("MISSED", 0) == 0;
}

std::string Format(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

}  // namespace switchyard
