// The front's log in the terms of Triton's LogSettings:
//
//   log_error, log_warning, log_info   whether such lines are written
//   log_verbose_level                  0; 1 for debug lines; 2 and more for trace lines too
//   log_format                         how lines of text show the time: "default", or "ISO8601"
//   log_file                           empty, because lines go to stderr; shown only
//
// The levels are one scale: switching a level off also switches off all less severe levels.
#pragma once

#include "base/status.h"
#include "proto/inference.pb.h"

namespace switchyard {

// Takes effect at once, for the front alone. Without settings nothing changes. InvalidArgument names the setting that
// is unknown or of the wrong kind; nothing changes then either.
absl::Status ChangeLogSettings(const inference::LogSettingsRequest& request);

inference::LogSettingsResponse CurrentLogSettings();

}  // namespace switchyard
