// How a worker ended, or its session with a front, and what that asks of a supervisor.
#pragma once

#include "base/status.h"

namespace switchyard {

// The exit status of the process. docs/operations.md says what a supervisor should do about each.
enum class ExitCode : int {
  kOk = 0,       // drained or stopped
  kError = 1,    // this process cannot do its work: its device is lost, or a model cannot be loaded
  kUsage = 2,    // wrong flags
  kNoFront = 3,  // no front was there, or took the worker, for as long as the worker was to try
  kRefused = 4,  // a front refused the worker for a reason that waiting does not change
};

struct WorkerEnd {
  ExitCode code = ExitCode::kOk;
  absl::Status why;  // OK with kOk
};

}  // namespace switchyard
