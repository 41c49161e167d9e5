#include "server/api/kserve/control/log_settings.h"

#include <algorithm>

#include "base/logging/logging.h"
#include "server/api/kserve/control/kserve_models.h"

namespace switchyard {
namespace {

using Level = spdlog::level::level_enum;
using Value = inference::LogSettingsRequest::SettingValue;

constexpr char kDefaultFormat[] = "default";
constexpr char kIsoFormat[] = "ISO8601";

struct Switches {
  bool error = true, warning = true, info = true;
  uint32_t verbose = 0;
  LogTimes times = CurrentLogTimes();
};

Switches SwitchesOf(Level level) {
  Switches switches;
  switches.error = level <= spdlog::level::err;
  switches.warning = level <= spdlog::level::warn;
  switches.info = level <= spdlog::level::info;
  switches.verbose = level == spdlog::level::trace ? 2 : level == spdlog::level::debug ? 1 : 0;
  return switches;
}

Level LevelOf(const Switches& switches) {
  if (!switches.error) return spdlog::level::off;
  if (!switches.warning) return spdlog::level::err;
  if (!switches.info) return spdlog::level::warn;
  if (switches.verbose == 0) return spdlog::level::info;
  return switches.verbose == 1 ? spdlog::level::debug : spdlog::level::trace;
}

absl::Status ApplyFormat(const Value& value, Switches* switches) {
  const std::string& format = value.string_param();
  if (format != kDefaultFormat && format != kIsoFormat) {
    return absl::InvalidArgumentError(absl::StrCat("settings log_format: expected the string ", kDefaultFormat, " or ",
                                                   kIsoFormat, ", found ", QuotedText(format)));
  }
  switches->times = format == kIsoFormat ? LogTimes::kIso8601 : LogTimes::kLocal;
  return absl::OkStatus();
}

absl::Status Apply(const std::string& name, const Value& value, Switches* switches) {
  bool* const flag = name == "log_error"     ? &switches->error
                     : name == "log_warning" ? &switches->warning
                     : name == "log_info"    ? &switches->info
                                             : nullptr;
  if (flag != nullptr) {
    if (!value.has_bool_param()) {
      return absl::InvalidArgumentError(absl::StrCat("settings ", name, ": expected a bool"));
    }
    *flag = value.bool_param();
    return absl::OkStatus();
  }
  if (name == "log_format") return ApplyFormat(value, switches);
  if (name == "log_file") {
    return absl::InvalidArgumentError("settings log_file: the log goes to stderr, and no caller can change that");
  }
  if (name != "log_verbose_level") {
    return absl::InvalidArgumentError(
        absl::StrCat("settings: expected log_error, log_warning, log_info, log_verbose_level or log_format, found ",
                     QuotedText(name)));
  }
  if (!value.has_uint32_param()) return absl::InvalidArgumentError("settings log_verbose_level: expected a uint32");
  switches->verbose = value.uint32_param();
  return absl::OkStatus();
}

}  // namespace

absl::Status ChangeLogSettings(const inference::LogSettingsRequest& request) {
  if (request.settings().empty()) return absl::OkStatus();
  Switches switches = SwitchesOf(spdlog::get_level());
  for (const auto& [name, value] : request.settings()) SY_RETURN_IF_ERROR(Apply(name, value, &switches));
  SY_RETURN_IF_ERROR(Annotate(SetLogTimes(switches.times), "settings log_format"));
  const Level level = LevelOf(switches);
  const auto name = spdlog::level::to_string_view(level);
  static LineBudget budget(1);
  LogWithin(&budget, std::max(level, spdlog::level::info), "log level {}", std::string_view(name.data(), name.size()));
  spdlog::set_level(level);
  return absl::OkStatus();
}

inference::LogSettingsResponse CurrentLogSettings() {
  const Switches switches = SwitchesOf(spdlog::get_level());
  inference::LogSettingsResponse response;
  auto& settings = *response.mutable_settings();
  settings["log_error"].set_bool_param(switches.error);
  settings["log_warning"].set_bool_param(switches.warning);
  settings["log_info"].set_bool_param(switches.info);
  settings["log_verbose_level"].set_uint32_param(switches.verbose);
  settings["log_format"].set_string_param(CurrentLogTimes() == LogTimes::kIso8601 ? kIsoFormat : kDefaultFormat);
  settings["log_file"].set_string_param("");
  return response;
}

}  // namespace switchyard
