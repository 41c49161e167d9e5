#include <iostream>

#include "base/deadlock_detection.h"
#include "cli/cli.h"

int main(int argc, char** argv) {
  switchyard::StopLookingForDeadlocks();
  return switchyard::RunCli(argc, argv, std::cout, std::cerr);
}
