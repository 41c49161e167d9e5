#include "server/observe/trace_settings.h"

#include <algorithm>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

constexpr size_t kMaxShown = 100;

std::string Shown(const std::vector<std::string>& values) {
  const std::string all = absl::StrJoin(values, ", ");
  return all.size() <= kMaxShown ? all : absl::StrCat(all.substr(0, kMaxShown), "…");
}

// Both return nullopt when there are no values.
absl::StatusOr<std::optional<int64_t>> ParseNumber(const std::string& name, const std::vector<std::string>& values,
                                                   int64_t low) {
  if (values.empty()) return std::nullopt;
  int64_t number = 0;
  if (values.size() == 1 && absl::SimpleAtoi(values[0], &number) && number >= low) return number;
  return absl::InvalidArgumentError(
      absl::StrCat("settings ", name, ": expected a number of at least ", low, ", found ", Shown(values)));
}

absl::StatusOr<std::optional<bool>> ParseLevel(const std::vector<std::string>& values) {
  if (values.empty()) return std::nullopt;
  if (values == std::vector<std::string>{"OFF"}) return false;
  if (values == std::vector<std::string>{"TIMESTAMPS"}) return true;
  return absl::InvalidArgumentError(
      absl::StrCat("settings trace_level: expected OFF or TIMESTAMPS (tensors are not traced), found ", Shown(values)));
}

}  // namespace

absl::Status TraceSettings::CheckOne(bool is_global, const std::string& name, const std::vector<std::string>& values,
                                     Change* change) const {
  if (name == "trace_level") {
    SY_ASSIGN_OR_RETURN(change->chosen.is_on, ParseLevel(values));
  } else if (name == "trace_rate") {
    SY_ASSIGN_OR_RETURN(change->chosen.rate, ParseNumber(name, values, 1));
  } else if (name == "trace_count") {
    change->resets_count = true;
    SY_ASSIGN_OR_RETURN(change->chosen.count, ParseNumber(name, values, -1));
  } else if (name == "log_frequency") {
    if (!is_global) {
      return absl::InvalidArgumentError("settings log_frequency: it is of all models; set it without a model_name");
    }
    SY_ASSIGN_OR_RETURN(const auto frequency, ParseNumber(name, values, 0));
    change->log_frequency = frequency.value_or(0);
  } else if (name == "trace_file" || name == "trace_mode") {
    return absl::InvalidArgumentError(
        absl::StrCat("settings ", name, ": it is set at the start (--trace_file), never by ", "a caller"));
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("settings: expected trace_level, trace_rate, trace_count or log_frequency, found '",
                     name.substr(0, kMaxShown), "'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<TraceSettings::Change> TraceSettings::Check(const std::string& model, const TraceValues& changes) const {
  const bool is_global = model.empty();
  Change change = {.chosen = {}, .resets_count = false, .log_frequency = log_frequency_};
  if (is_global) {
    change.chosen = all_.chosen;
  } else if (const auto it = models_.find(model); it != models_.end()) {
    change.chosen = it->second.chosen;
  }
  for (const auto& [name, values] : changes) SY_RETURN_IF_ERROR(CheckOne(is_global, name, values, &change));
  if (change.chosen.is_on.value_or(false) && file_.empty()) {
    return absl::FailedPreconditionError("settings trace_level: the server was started without --trace_file");
  }
  return change;
}

absl::Status TraceSettings::Update(const std::string& model, const TraceValues& changes) {
  if (changes.empty()) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(Change change, Check(model, changes));
  log_frequency_ = change.log_frequency;
  if (model.empty()) {
    const Chosen initial = TraceSettings("").all_.chosen;
    if (!change.chosen.is_on.has_value()) change.chosen.is_on = initial.is_on;
    if (!change.chosen.rate.has_value()) change.chosen.rate = initial.rate;
    if (!change.chosen.count.has_value()) change.chosen.count = initial.count;
    all_.chosen = change.chosen;
    if (!change.resets_count) return absl::OkStatus();
    all_.left = *change.chosen.count;
    for (auto& [name, sampler] : models_) {
      if (!sampler.chosen.count.has_value()) sampler.left = all_.left;
    }
    return absl::OkStatus();
  }
  if (change.chosen.is_empty()) {
    models_.erase(model);
    return absl::OkStatus();
  }
  const auto [it, is_new] = models_.try_emplace(model);
  it->second.chosen = change.chosen;
  if (is_new || change.resets_count) it->second.left = change.chosen.count.value_or(*all_.chosen.count);
  return absl::OkStatus();
}

const TraceSettings::Sampler& TraceSettings::SamplerOf(const std::string& model) const {
  const auto it = models_.find(model);
  return it == models_.end() ? all_ : it->second;
}

TraceValues TraceSettings::Show(const std::string& model) const {
  const Sampler& sampler = SamplerOf(model);
  return {{"trace_level", {IsOn(sampler) ? "TIMESTAMPS" : "OFF"}},
          {"trace_rate", {absl::StrCat(RateOf(sampler))}},
          {"trace_count", {absl::StrCat(sampler.left)}},
          {"log_frequency", {absl::StrCat(log_frequency_)}},
          {"trace_file", {file_}},
          {"trace_mode", {"triton"}}};
}

bool TraceSettings::Sample(const std::string& model) {
  const auto it = models_.find(model);
  Sampler& sampler = it == models_.end() ? all_ : it->second;
  if (!IsOn(sampler) || sampler.left == 0) return false;
  if (++sampler.seen < RateOf(sampler)) return false;
  sampler.seen = 0;
  if (sampler.left > 0) --sampler.left;
  return true;
}

bool TraceSettings::is_any_on() const {
  return *all_.chosen.is_on ||
         std::any_of(models_.begin(), models_.end(), [this](const auto& model) { return IsOn(model.second); });
}

}  // namespace switchyard
