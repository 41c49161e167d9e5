// The scorecard of robustness: what is tried, its limit, what was measured, and whether it held.
//
// It has 15 rows, and a row has one line or more. A line is printed as soon as it is measured, as a line of a table in
// Markdown, so that a run that is cut short still shows what it has found. Used by one thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace switchyard {

// A condition and whether it held.
using Demand = std::pair<bool, std::string>;

struct ScorecardLine {
  std::string tried;
  std::string limit;
  std::string measured;
  std::vector<Demand> demands;
  std::string not_run;  // the reason; then nothing was measured
};

// What a row is without this machine, build or size.
ScorecardLine NotRun(const std::string& tried, const std::string& limit, const std::string& reason);

class Scorecard {
 public:
  // With `is_quick`, the head of the table says that the sizes are small.
  explicit Scorecard(bool is_quick) : is_quick_(is_quick) {}

  void Print(int row, const ScorecardLine& line);
  bool has_missed() const { return has_missed_; }

 private:
  const bool is_quick_;
  bool has_head_ = false;
  bool has_missed_ = false;
};

// printf for one number.
std::string Format(const char* format, double value);

}  // namespace switchyard
