// Which requests are traced: Triton's trace settings, for all models and for single ones.
//
//   trace_level    OFF or TIMESTAMPS
//   trace_rate     N: of N requests that are answered, one is traced
//   trace_count    how many more are traced, -1 for any number; shown, it is what is left
//   log_frequency  N: a file for every N traces, FILE.0, FILE.1, …; 0 for one file. Of all models.
//   trace_file     where they go; set at the start and shown
//   trace_mode     "triton"
//
// A model without settings of its own is counted with all others like it; one that has some counts its own requests,
// and takes the other settings from those of all models.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace switchyard {

// Setting → values, as in the RPC.
using TraceValues = std::map<std::string, std::vector<std::string>>;

// Not thread-safe.
class TraceSettings {
 public:
  // Without a file nothing can be traced.
  explicit TraceSettings(std::string file) : file_(std::move(file)) {}

  // Of the model called so, or of all when it is empty. No values take a setting back: a model's to that of all, one of
  // all to what it was at the start. InvalidArgument names the setting, what was expected and what came, and
  // FailedPrecondition says that there is no file; nothing has changed then.
  absl::Status Update(const std::string& model, const TraceValues& changes);
  TraceValues Show(const std::string& model) const;

  // Told of every request that is answered; whether it is traced.
  bool Sample(const std::string& model);
  // Whether any can be: while not, nobody needs to ask.
  bool is_any_on() const;
  int64_t log_frequency() const { return log_frequency_; }

 private:
  // What is set for a model; of all models everything is.
  struct Chosen {
    std::optional<bool> is_on;
    std::optional<int64_t> rate;
    std::optional<int64_t> count;
    bool is_empty() const { return !is_on.has_value() && !rate.has_value() && !count.has_value(); }
  };
  struct Sampler {
    Chosen chosen;
    int64_t left = -1;  // of its count
    int64_t seen = 0;   // requests since the last that was traced
  };
  // A change, checked.
  struct Change {
    Chosen chosen;
    bool resets_count = false;
    int64_t log_frequency = 0;
  };

  absl::StatusOr<Change> Check(const std::string& model, const TraceValues& changes) const;
  absl::Status CheckOne(bool is_global, const std::string& name, const std::vector<std::string>& values,
                        Change* change) const;
  const Sampler& SamplerOf(const std::string& model) const;
  bool IsOn(const Sampler& sampler) const { return sampler.chosen.is_on.value_or(*all_.chosen.is_on); }
  int64_t RateOf(const Sampler& sampler) const { return sampler.chosen.rate.value_or(*all_.chosen.rate); }

  const std::string file_;
  Sampler all_ = {.chosen = {.is_on = false, .rate = 1000, .count = -1}};
  std::map<std::string, Sampler, std::less<>> models_;  // those with settings of their own
  int64_t log_frequency_ = 0;
};

}  // namespace switchyard
