#include <iostream>

#include "client/cli.h"
#include "moe/base/deadlock_detection.h"

int main(int argc, char** argv) {
  switchyard::StopLookingForDeadlocks();
  return switchyard::RunCli(argc, argv, std::cout, std::cerr);
}
