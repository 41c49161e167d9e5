#include "server/api/kserve/control/trace_setting.h"

#include "base/logging/log_text.h"
#include "base/logging/logging.h"

namespace switchyard {

absl::Status ChangeTraceSettings(const inference::TraceSettingRequest& request, Tracer* tracer) {
  if (request.settings().empty()) return absl::OkStatus();
  TraceValues changes;
  for (const auto& [name, setting] : request.settings()) {
    changes[name] = {setting.value().begin(), setting.value().end()};
  }
  SY_RETURN_IF_ERROR(tracer->Update(request.model_name(), changes));
  static LineBudget budget(1);
  LogWithin(&budget, spdlog::level::info, "trace settings of {} changed",
            request.model_name().empty() ? "all models" : NameForLog(request.model_name()));
  return absl::OkStatus();
}

inference::TraceSettingResponse CurrentTraceSettings(const std::string& model, const Tracer& tracer) {
  inference::TraceSettingResponse response;
  for (const auto& [name, values] : tracer.Show(model)) {
    auto& shown = (*response.mutable_settings())[name];
    for (const std::string& value : values) shown.add_value(value);
  }
  return response;
}

}  // namespace switchyard
