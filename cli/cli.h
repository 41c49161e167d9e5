// The `switchyard` command line as a function, so that tests can call it.
#pragma once

#include <ostream>

namespace switchyard {

// Runs the subcommand that `argv` names and returns the process's exit code, one of those in command.h.
int RunCli(int argc, const char* const* argv, std::ostream& out, std::ostream& err);

}  // namespace switchyard
