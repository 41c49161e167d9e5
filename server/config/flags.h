// The front's command line.
#pragma once

#include <optional>

#include "server/config/options.h"

namespace CLI {
class App;
}

namespace switchyard {

// Adds every flag of ServerOptions to `app`, with help. Parsing fills `options`, which must outlive `app`.
void DefineFlags(CLI::App& app, ServerOptions* options);

// Fills `options` from the command line and from the file that --config names. Returns the exit code when the program
// should end: 0 after --help and --version, which print to stdout, 2 after an error, which is printed to stderr.
std::optional<int> ParseFlags(int argc, const char* const* argv, ServerOptions* options);

}  // namespace switchyard
