// Which requests are traced: Triton's trace settings, for all models and for single ones.
//
//   trace_level    OFF or TIMESTAMPS
//   trace_rate     N: of N requests that are answered, one is traced
//   trace_count    how many more are traced, -1 for any number; when shown, how many are left
//   log_frequency  N: a file for every N traces, FILE.0, FILE.1, …; 0 for one file. The same for all models.
//   trace_file     the file that traces go to; set at the start, shown only
//   trace_mode     "triton"
//
// All models without settings of their own are counted together. A model with settings of its own counts its own
// requests, and takes the settings that it does not have from those for all models.
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

  // Changes the settings of the model named `model`, or those for all models when the name is empty. A setting with no
  // values is taken back: a model's to the setting for all models, one for all models to its initial value.
  // InvalidArgument names the setting, what was expected and what came. FailedPrecondition says that there is no file.
  // On an error nothing changes.
  absl::Status Update(const std::string& model, const TraceValues& changes);
  TraceValues Show(const std::string& model) const;

  // Call it for every request that is answered; returns whether the request is to be traced.
  bool Sample(const std::string& model);
  // Whether tracing is on for any model. While it is not, Sample need not be called.
  bool is_any_on() const;
  int64_t log_frequency() const { return log_frequency_; }

 private:
  // The settings that were chosen for one model, or for all models; for all models every setting has a value.
  struct Chosen {
    std::optional<bool> is_on;
    std::optional<int64_t> rate;
    std::optional<int64_t> count;
    bool is_empty() const { return !is_on.has_value() && !rate.has_value() && !count.has_value(); }
  };
  struct Sampler {
    Chosen chosen;
    int64_t left = -1;  // how many more are traced
    int64_t seen = 0;   // requests since the last one that was traced
  };
  // A change that was checked.
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
