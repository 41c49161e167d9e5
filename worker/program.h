// The worker program: flags, signals, log, and a Worker on the device that `open_device` gives for the options.
// switchyard_worker is this with OpenDevice; programs with engines of their own bring another.
#pragma once

#include "worker/device.h"

namespace switchyard {

// What main returns: 0 ended as asked, 1 could not start or go on, 2 the command line could not be parsed.
int RunWorkerProgram(int argc, char** argv, DeviceOpener open_device);

}  // namespace switchyard
