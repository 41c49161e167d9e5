// Shows how loading goes, over all ranks and one model after the other: on a terminal as a bar that is drawn over and
// over in one line and ended by a newline when the model is loaded, elsewhere as a line of the log every few seconds.
//
//   jargon  [#####################-------------------]  52 %  1.0 GiB of 2.0 GiB, 812.3 MiB/s, 2 s left
//
// Log lines and the bar share the terminal. A bar is one write, without a newline; a log line erases the line it begins
// on (base/logging.h), whichever process writes it, and the next Update draws the bar anew below.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/progress.h"
#include "server/group/membership.h"

namespace switchyard {

// Where a LoadDisplay shows itself. Exactly one of the two is set.
struct LoadOutput {
  std::function<void(std::string_view text)> draw;  // to the terminal, as it is
  std::function<void(const std::string& line)> log;
  std::function<int()> num_columns = [] { return 80; };  // of the terminal
};

// Draws on stderr when it is a terminal, the log is text and shows this much; else logs.
LoadOutput StderrLoadOutput(const std::string& log_format);

// Thread-compatible. Time is passed in.
class LoadDisplay {
 public:
  explicit LoadDisplay(LoadOutput output);
  // Ends a line that is being drawn.
  ~LoadDisplay();
  LoadDisplay(const LoadDisplay&) = delete;
  LoadDisplay& operator=(const LoadDisplay&) = delete;

  // Call when anything changed, and a few times a second while a rank loads. What is shown is the first model that is
  // not loaded everywhere. Ranks that kept their weights while others load anew (recovery) do not count.
  void Update(const std::vector<ModelLoad>& models, SteadyTime now);

 private:
  struct Sum {
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;
    bool is_loaded = true;  // by every rank that takes part
  };
  // A model from when a rank begins to load it until all have it.
  struct Session {
    std::vector<bool> takes_part;  // by rank
    bool is_told = false;          // that it is loaded
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
