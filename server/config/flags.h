// The front's command line.
#pragma once

#include <CLI/CLI.hpp>

#include "server/config/options.h"

namespace switchyard {

// Adds every flag of ServerOptions to `app`, with help. Parsing fills `options`, which must outlive `app`.
void DefineFlags(CLI::App& app, ServerOptions* options);

}  // namespace switchyard
