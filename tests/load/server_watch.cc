#include "tests/load/server_watch.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/clock.h"

namespace switchyard {
namespace {

std::string ProcFile(pid_t pid, const char* name) { return absl::StrCat("/proc/", pid, "/", name); }

// The number after `key` in the text of /proc/PID/status.
int64_t StatusField(const std::string& status, const std::string& key) {
  const size_t at = status.find("\n" + key + ":");
  return at == std::string::npos ? 0 : std::atoll(status.c_str() + at + key.size() + 2);
}

}  // namespace

ProcessUsage UsageOf(pid_t pid) {
  std::ifstream file(ProcFile(pid, "status"));
  const std::string status((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  ProcessUsage usage;
  usage.rss_bytes = StatusField(status, "VmRSS") * 1024;
  usage.peak_rss_bytes = StatusField(status, "VmHWM") * 1024;
  usage.num_threads = static_cast<int>(StatusField(status, "Threads"));
  std::error_code gone;
  for (auto it = std::filesystem::directory_iterator(ProcFile(pid, "fd"), gone);
       !gone && it != std::filesystem::directory_iterator(); it.increment(gone)) {
    ++usage.num_fds;
  }
  return usage;
}

void ResetPeakRss(pid_t pid) { std::ofstream(ProcFile(pid, "clear_refs")) << "5"; }

double MetricValue(const std::string& metrics, const std::string& name) {
  const size_t at = metrics.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::atof(metrics.c_str() + at + name.size() + 2);
}

AdmittedWork AdmittedBy(const ServerProcess& server) {
  const std::string metrics = server.Get("/metrics");
  const auto value = [&](const char* what) {
    return static_cast<int64_t>(MetricValue(metrics, absl::StrCat("switchyard_admitted_", what)));
  };
  return {value("requests"), value("rows"), value("bytes")};
}

AdmittedWork WaitUntilIdle(const ServerProcess& server, std::chrono::milliseconds timeout) {
  const SteadyTime end = Clock::Real().Now() + timeout;
  AdmittedWork work = AdmittedBy(server);
  while (!work.none() && Clock::Real().Now() < end) {
    usleep(10'000);
    work = AdmittedBy(server);
  }
  return work;
}

}  // namespace switchyard
