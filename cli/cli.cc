#include "cli/cli.h"

#include "cli/command.h"
#include "rpc/version_line.h"

namespace switchyard {
namespace {

constexpr char kCliFooter[] = R"(Exit codes:
  0  success
  1  output beyond tolerance (infer --expect), or every request failed (bench)
  2  wrong flags or files
  3  the front did not answer, or answered with an error

Examples:
  switchyard status --target=127.0.0.1:8001
  switchyard inspect ~/models/Qwen3-30B-A3B --ranks=2
  switchyard infer --help)";

}  // namespace

int RunCli(int argc, const char* const* argv, std::ostream& out, std::ostream& err) {
  CLI::App app("Client of a Switchyard front: runs MoE layers, inspects and load-tests the service.", "switchyard");
  app.set_version_flag("--version", VersionLine("switchyard"));
  app.require_subcommand(1);
  app.footer(kCliFooter);
  int exit_code = kExitOk;
  const Console console = {&out, &err};
  AddInferCommand(&app, console, &exit_code);
  AddModelsCommand(&app, console, &exit_code);
  AddRepositoryCommands(&app, console, &exit_code);
  AddStatusCommand(&app, console, &exit_code);
  AddBenchCommand(&app, console, &exit_code);
  AddInspectCommand(&app, console, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, out, err) == 0 ? kExitOk : kExitUsage;
  }
  return exit_code;
}

}  // namespace switchyard
