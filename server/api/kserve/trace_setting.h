// The TraceSetting call of Triton's API; what the settings mean is said in server/observe/trace_settings.h.
#pragma once

#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "server/observe/tracer.h"

namespace switchyard {

// Takes effect at once. Without settings nothing changes. Errors are those of TraceSettings::Update.
absl::Status ChangeTraceSettings(const inference::TraceSettingRequest& request, Tracer* tracer);

// Those that count for the model, or for all when `model` is empty.
inference::TraceSettingResponse CurrentTraceSettings(const std::string& model, const Tracer& tracer);

}  // namespace switchyard
