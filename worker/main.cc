// switchyard_worker: one rank that holds experts and runs steps for a front.
#include "worker/device.h"
#include "worker/program.h"

int main(int argc, char** argv) { return switchyard::RunWorkerProgram(argc, argv, switchyard::OpenDevice); }
