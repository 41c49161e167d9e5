#include <iostream>

#include "base/process/deadlock_detection.h"
#include "base/process/exhausted.h"
#include "base/process/process_start.h"
#include "cli/cli.h"

int main(int argc, char** argv) {
  switchyard::PrepareProcess(switchyard::ProgramKind::kTool);
  switchyard::NameLimitsAtTheEnd("switchyard");
  switchyard::StopLookingForDeadlocks();
  return switchyard::RunCli(argc, argv, std::cout, std::cerr);
}
