// The worker program: flags, signals, logging, and a Worker on the device that `open_device` opens for the options.
// switchyard_worker passes OpenDevice; programs with engines of their own pass their own function.
#pragma once

#include "worker/device.h"

namespace switchyard {

// Returns main's exit status: 0 if the worker ended as asked, 1 if it could not start or go on, 2 if the command line
// could not be parsed.
int RunWorkerProgram(int argc, char** argv, DeviceOpener open_device);

}  // namespace switchyard
