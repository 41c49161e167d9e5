// The progress of a long transfer as text: bytes, bytes per second, time left. The caller passes the time in.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace switchyard {

struct Progress {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  double seconds = 0;  // since the beginning
  double bytes_per_second = 0;
  std::optional<double> seconds_left;  // none while the rate is unknown
  bool is_done() const { return bytes_done >= bytes_total; }
};

// Thread-compatible.
class ProgressMeter {
 public:
  explicit ProgressMeter(SteadyTime begin) : begin_{begin, 0} {}

  // `bytes_done` counts all bytes so far. Once all are done, the rate is that of the whole transfer; until then, that
  // of the last ten seconds. If fewer bytes are done than before (a worker began again), the measurement starts anew.
  Progress Update(SteadyTime now, int64_t bytes_done, int64_t bytes_total);

 private:
  struct Sample {
    SteadyTime time;
    int64_t bytes_done;
  };
  Sample begin_;
  std::deque<Sample> samples_;  // oldest first
};

// "512 B", "1.5 KiB", "812.3 MiB", "2.0 GiB".
std::string BytesText(double num_bytes);
// "0.25 s", "3 s", "12 s", "1 min 05 s", "2 h 03 min".
std::string DurationText(double seconds);

// "1.2 GiB of 2.0 GiB, 812.3 MiB/s, 1 s left", or "2.0 GiB in 2.46 s, 832.5 MiB/s" once all is done.
std::string ProgressText(const Progress& progress);

// "LABEL  [######------]  52 %  TEXT" for a terminal: shorter than `num_columns`, so that it never wraps. On a narrow
// terminal the bar is dropped first, then the text's end.
std::string ProgressBar(std::string_view label, const Progress& progress, int num_columns);

}  // namespace switchyard
