// Limits that a container, or a service manager, puts on this process through control groups, of version 1 or 2.
//
// A limit may stand at any level above the process, so every level that can be seen counts, and the lowest limit wins.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

// Empty where there is no limit.
struct ContainerLimits {
  std::optional<double> cpus;  // CPU time in a second, in seconds
  std::optional<int64_t> memory_bytes;
  std::optional<int64_t> processes;  // threads count as processes
};

// Reads /proc/self/cgroup, /proc/self/mountinfo and the files that these name. Tests put `root` before every path.
// A limit that cannot be read counts as none.
ContainerLimits ReadContainerLimits(const std::string& root = "");

// How many threads of this process can run at a time.
struct CpuShare {
  int num_cores = 1;  // that the process may run on (its affinity)
  // The number of threads that can run without pause: at most num_cores, fewer under a limit of CPU time. At least 1.
  int num_threads = 1;

  // Whether there is a limit of CPU time. A thread that spins while it waits then takes time from those that work.
  bool is_limited() const { return num_threads < num_cores; }
};
CpuShare ShareOf(int num_cores, const ContainerLimits& limits);

// The share of this process, read at the first call. Thread-safe.
const CpuShare& OwnCpuShare();

// The memory that the process may use: that of the machine, or less under a limit. Read at the first call. Thread-safe.
int64_t MemoryLimit();

// Environment variables, as NAME=value, that say how libgomp's threads wait between the many short parallel loops of a
// step, for `num_threads` threads on this host. Spinning for about 50 µs bridges the gaps without taking the cores from
// others for long. Threads that outnumber the cores, or whose CPU time is limited, do not spin, because they would only
// keep others from running. Empty when the environment says it already.
std::vector<std::string> ThreadWaiting(int num_threads);

}  // namespace switchyard
