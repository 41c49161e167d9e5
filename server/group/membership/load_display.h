// Shows the progress of loading, summed over all ranks, one model after the other. On a terminal it redraws a bar in
// one line, and ends the line when the model is loaded. Elsewhere it logs a line every few seconds.
//
//   jargon  [#####################-------------------]  52 %  1.0 GiB of 2.0 GiB, 812.3 MiB/s, 2 s left
//
// Log lines and the bar share the terminal. A bar is one write without a newline. A log line of any process first
// erases the terminal line on which it begins (base/logging/logging.h), and the next Update draws the bar again below
// it.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/progress.h"
#include "server/group/membership/membership.h"

namespace switchyard {

// The output of a LoadDisplay. Exactly one of `draw` and `log` is set.
struct LoadOutput {
  std::function<void(std::string_view text)> draw;  // writes to the terminal, unchanged
  std::function<void(const std::string& line)> log;
  std::function<int()> num_columns = [] { return 80; };  // of the terminal
};

// Draws on stderr if that is a terminal and the log is text and shows info messages; otherwise logs.
LoadOutput StderrLoadOutput(const std::string& log_format);

// Thread-compatible. Time is passed in.
class LoadDisplay {
 public:
  explicit LoadDisplay(LoadOutput output);
  // Ends the line of a bar that is not complete.
  ~LoadDisplay();
  LoadDisplay(const LoadDisplay&) = delete;
  LoadDisplay& operator=(const LoadDisplay&) = delete;

  // Call when anything changed, and a few times a second while a rank loads. Shows the first model that is not loaded
  // on every rank. Ranks that kept their weights while others load anew (recovery) do not count.
  void Update(const std::vector<ModelLoad>& models, SteadyTime now);

 private:
  struct Sum {
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;
    bool is_loaded = true;  // on every rank that takes part
  };
  // The loading of one model: from when a rank begins to load it until all ranks have it.
  struct Session {
    std::vector<bool> takes_part;  // by rank
    bool is_told = false;          // the model was shown as loaded
  };
  // The model that is shown.
  struct Current {
    ModelId id;
    ProgressMeter meter;
    SteadyTime last_line;
  };

  void UpdateSessions(const std::vector<ModelLoad>& models);
  static Sum SumOf(const ModelLoad& model, const Session& session);
  static std::string LabelOf(const ModelLoad& model, const Session& session);
  void Show(const std::string& label, const Sum& sum, const Progress& progress, SteadyTime now);
  void Draw(const std::string& label, const Sum& sum, const Progress& progress);

  const LoadOutput output_;
  std::map<ModelId, Session> sessions_;
  std::optional<Current> current_;
  bool line_is_open_ = false;
};

}  // namespace switchyard
