// The TraceSetting call of Triton's API; server/observe/trace_settings.h says what the settings mean.
#pragma once

#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "server/observe/tracer.h"

namespace switchyard {

// Takes effect at once. Without settings nothing changes. Errors are those of TraceSettings::Update.
absl::Status ChangeTraceSettings(const inference::TraceSettingRequest& request, Tracer* tracer);

// The settings that apply to the model, or those for all models when `model` is empty.
inference::TraceSettingResponse CurrentTraceSettings(const std::string& model, const Tracer& tracer);

}  // namespace switchyard
