#include "http/process_metrics.h"

#include <prometheus/metric_family.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/logging/logging.h"
#include "base/process/port_connections.h"

namespace switchyard {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

void Add(const char* name, const char* help, MetricType type, double value, std::vector<MetricFamily>* families) {
  MetricFamily& family = families->emplace_back();
  family.name = name;
  family.help = help;
  family.type = type;
  prometheus::ClientMetric& metric = family.metric.emplace_back();
  (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
}

void AddConnections(std::vector<MetricFamily>* families) {
  MetricFamily open = {
      "switchyard_connections", "Connections that are open, by the port of this process.", MetricType::Gauge, {}};
  MetricFamily refused = {"switchyard_connections_refused_total",
                          "Connections closed at once because the port had no room or descriptors were scarce.",
                          MetricType::Counter,
                          {}};
  const std::vector<PortConnections::Counts> ports = PortConnections::OfAllPorts();
  if (ports.empty()) return;
  for (const PortConnections::Counts& counts : ports) {
    prometheus::ClientMetric& now = open.metric.emplace_back();
    now.label = {{"port", counts.port}};
    now.gauge.value = static_cast<double>(counts.open);
    prometheus::ClientMetric& total = refused.metric.emplace_back();
    total.label = now.label;
    total.counter.value = static_cast<double>(counts.refused);
  }
  families->push_back(std::move(open));
  families->push_back(std::move(refused));
}

std::string ReadLine(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Indices of fields of /proc/self/stat in the result of StatFields. proc(5) numbers the fields from 1.
constexpr size_t kUserTime = 14 - 3, kSystemTime = 15 - 3, kStartTime = 22 - 3, kVirtualBytes = 23 - 3,
                 kResidentPages = 24 - 3;

// The fields from the third on, because the second, the program's name, may contain blanks and parentheses. A field
// that is not a number, such as the state, counts as 0.
std::vector<double> StatFields() {
  const std::string line = ReadLine("/proc/self/stat");
  const size_t name_end = line.rfind(')');
  std::vector<double> fields;
  if (name_end == std::string::npos) return fields;
  for (const auto word : absl::StrSplit(line.substr(name_end + 1), ' ', absl::SkipEmpty())) {
    if (!absl::SimpleAtod(word, &fields.emplace_back())) fields.back() = 0;
  }
  return fields;
}

// When the machine started, in seconds since 1970.
std::optional<double> BootTime() {
  std::ifstream file("/proc/stat");
  double value = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("btime ", 0) == 0 && absl::SimpleAtod(line.substr(6), &value)) return value;
  }
  return std::nullopt;
}

std::optional<double> OpenDescriptors() {
  std::error_code error;
  std::filesystem::directory_iterator entries("/proc/self/fd", error);
  if (error) return std::nullopt;
  return static_cast<double>(std::distance(begin(entries), end(entries)));
}

}  // namespace

std::vector<MetricFamily> ProcessMetrics::Collect() const {
  std::vector<MetricFamily> families;
  const std::vector<double> stat = StatFields();
  if (stat.size() > kResidentPages) {
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    Add("process_cpu_seconds_total", "User and system time of this process.", MetricType::Counter,
        (stat[kUserTime] + stat[kSystemTime]) / ticks, &families);
    Add("process_virtual_memory_bytes", "Address space of this process.", MetricType::Gauge, stat[kVirtualBytes],
        &families);
    Add("process_resident_memory_bytes", "Memory of this process.", MetricType::Gauge,
        stat[kResidentPages] * static_cast<double>(sysconf(_SC_PAGESIZE)), &families);
    if (const auto boot = BootTime(); boot.has_value()) {
      Add("process_start_time_seconds", "When this process started, since 1970.", MetricType::Gauge,
          *boot + stat[kStartTime] / ticks, &families);
    }
  }
  if (const auto open = OpenDescriptors(); open.has_value()) {
    Add("process_open_fds", "File descriptors that are open.", MetricType::Gauge, *open, &families);
  }
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    Add("process_max_fds", "File descriptors that may be open.", MetricType::Gauge, static_cast<double>(limit.rlim_cur),
        &families);
  }
  AddConnections(&families);
  Add("switchyard_log_lines_dropped_total", "Log lines of this process that were not read in time, or not written.",
      MetricType::Counter, static_cast<double>(NumLogLinesDropped()), &families);
  return families;
}

}  // namespace switchyard
