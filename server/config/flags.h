// The front's command line.
#pragma once

#include <CLI/CLI.hpp>

#include "server/config/options.h"

namespace switchyard {

// Adds every flag of ServerOptions to `app`, with help. `options` is filled by parsing and must outlive it.
void DefineFlags(CLI::App& app, ServerOptions* options);

}  // namespace switchyard
