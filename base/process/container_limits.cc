#include "base/process/container_limits.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace switchyard {
namespace {

// Version 1 writes a number near the largest for "no limit", rounded to whole pages.
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max() / 2;

std::vector<std::string> Lines(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

// The numbers on a file's first line; nullopt for "max".
std::vector<std::optional<int64_t>> Numbers(const std::string& path) {
  std::vector<std::optional<int64_t>> numbers;
  const std::vector<std::string> lines = Lines(path);
  if (lines.empty()) return numbers;
  for (const absl::string_view word : absl::StrSplit(lines[0], ' ', absl::SkipEmpty())) {
    int64_t number = 0;
    const bool is_limit = absl::SimpleAtoi(word, &number) && number >= 0 && number < kNoLimit;
    numbers.push_back(is_limit ? std::optional(number) : std::nullopt);
  }
  return numbers;
}

std::optional<int64_t> Number(const std::string& path) {
  const auto numbers = Numbers(path);
  return numbers.empty() ? std::nullopt : numbers[0];
}

template <typename T>
void Lower(const std::optional<T>& limit, std::optional<T>* lowest) {
  if (limit.has_value() && (!lowest->has_value() || *limit < **lowest)) *lowest = limit;
}

// Paths in mountinfo have blanks and a few other characters as \ooo.
std::string Unescape(absl::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    int code = 0;
    for (size_t j = 1; text[i] == '\\' && j <= 3 && i + j < text.size(); ++j) code = 8 * code + (text[i + j] - '0');
    if (text[i] == '\\' && i + 3 < text.size()) i += 3;
    plain += code > 0 ? static_cast<char>(code) : text[i];
  }
  return plain;
}

// A mounted hierarchy of control groups.
struct Hierarchy {
  std::string root;  // the group that is seen at `mount_point`
  std::string mount_point;
  bool is_v2 = false;
  std::string controllers;  // of version 1: "rw,cpu,cpuacct"
};

std::vector<Hierarchy> Hierarchies(const std::string& root) {
  std::vector<Hierarchy> hierarchies;
  for (const std::string& line : Lines(root + "/proc/self/mountinfo")) {
    // 36 35 0:31 ROOT MOUNT_POINT OPTIONS [TAGS…] - TYPE SOURCE SUPER_OPTIONS
    const std::vector<absl::string_view> halves = absl::StrSplit(line, absl::MaxSplits(" - ", 1));
    if (halves.size() != 2) continue;
    const std::vector<absl::string_view> first = absl::StrSplit(halves[0], ' ');
    const std::vector<absl::string_view> second = absl::StrSplit(halves[1], ' ');
    if (first.size() < 5 || second.size() < 3 || !absl::StartsWith(second[0], "cgroup")) continue;
    hierarchies.push_back({Unescape(first[3]), Unescape(first[4]), second[0] == "cgroup2", std::string(second[2])});
  }
  return hierarchies;
}

bool HasController(absl::string_view list, absl::string_view controller) {
  const std::vector<absl::string_view> names = absl::StrSplit(list, ',');
  return std::find(names.begin(), names.end(), controller) != names.end();
}

// The folders of this process's group in `hierarchy` and of all groups above it that can be seen, with the path of the
// group that `own_groups`, lines of /proc/self/cgroup, name for `controller`.
std::vector<std::string> FoldersUpwards(const std::string& root, const Hierarchy& hierarchy,
                                        const std::vector<std::string>& own_groups, absl::string_view controller) {
  std::string path;
  for (const std::string& line : own_groups) {
    // NUMBER:CONTROLLERS:PATH, without controllers for version 2
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    if (hierarchy.is_v2 ? parts[1].empty() : HasController(parts[1], controller)) path = parts[2];
  }
  // In a namespace of its own a container's group is "/", and the mount shows it as that. Elsewhere the mount may show
  // only a part of the hierarchy. A group outside the namespace has a path with "..", and cannot be seen.
  absl::string_view below = path;
  if (hierarchy.root != "/" && !absl::ConsumePrefix(&below, hierarchy.root)) below = "";
  if (absl::StrContains(below, "/..")) below = "";
  std::vector<std::string> folders;
  while (true) {
    while (absl::EndsWith(below, "/")) below.remove_suffix(1);
    folders.push_back(absl::StrCat(root, hierarchy.mount_point, below));
    if (below.empty()) return folders;
    below = below.substr(0, below.rfind('/') == absl::string_view::npos ? 0 : below.rfind('/'));
  }
}

std::optional<double> Quota(const std::optional<int64_t>& quota, const std::optional<int64_t>& period) {
  if (!quota.has_value() || !period.has_value() || *quota <= 0 || *period <= 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

std::optional<double> CpusOf(const std::string& folder, bool is_v2) {
  if (!is_v2) return Quota(Number(folder + "/cpu.cfs_quota_us"), Number(folder + "/cpu.cfs_period_us"));
  const auto numbers = Numbers(folder + "/cpu.max");
  return numbers.size() == 2 ? Quota(numbers[0], numbers[1]) : std::nullopt;
}

int CoresOfAffinity() {
  for (int num_cpus = CPU_SETSIZE; num_cpus <= 1 << 20; num_cpus *= 4) {
    cpu_set_t* const set = CPU_ALLOC(num_cpus);
    if (set == nullptr) break;
    const size_t size = CPU_ALLOC_SIZE(num_cpus);
    const int count = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
}

}  // namespace

ContainerLimits ReadContainerLimits(const std::string& root) {
  ContainerLimits limits;
  const std::vector<std::string> own_groups = Lines(root + "/proc/self/cgroup");
  for (const Hierarchy& hierarchy : Hierarchies(root)) {
    const auto each_folder = [&](const char* controller, const auto& read) {
      if (!hierarchy.is_v2 && !HasController(hierarchy.controllers, controller)) return;
      for (const std::string& folder : FoldersUpwards(root, hierarchy, own_groups, controller)) read(folder);
    };
    each_folder("cpu", [&](const std::string& folder) { Lower(CpusOf(folder, hierarchy.is_v2), &limits.cpus); });
    each_folder("memory", [&](const std::string& folder) {
      Lower(Number(folder + (hierarchy.is_v2 ? "/memory.max" : "/memory.limit_in_bytes")), &limits.memory_bytes);
    });
    each_folder("pids", [&](const std::string& folder) { Lower(Number(folder + "/pids.max"), &limits.processes); });
  }
  return limits;
}

CpuShare ShareOf(int num_cores, const ContainerLimits& limits) {
  CpuShare share = {num_cores, num_cores};
  if (limits.cpus.has_value()) {
    // Rounded down: one thread more would use the time up early, and all threads would pause until there is new.
    share.num_threads = static_cast<int>(std::clamp(std::floor(*limits.cpus), 1.0, static_cast<double>(num_cores)));
  }
  return share;
}

const CpuShare& OwnCpuShare() {
  static const CpuShare share = ShareOf(CoresOfAffinity(), ReadContainerLimits());
  return share;
}

int64_t MemoryLimit() {
  static const int64_t limit = [] {
    const int64_t machine = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    return std::min(machine, ReadContainerLimits().memory_bytes.value_or(machine));
  }();
  return limit;
}

std::vector<std::string> ThreadWaiting(int num_threads) {
  if (getenv("OMP_WAIT_POLICY") != nullptr || getenv("GOMP_SPINCOUNT") != nullptr) return {};
  const CpuShare& share = OwnCpuShare();
  if (num_threads > share.num_cores || share.is_limited()) return {"OMP_WAIT_POLICY=passive"};
  return {"OMP_WAIT_POLICY=active", "GOMP_SPINCOUNT=20000"};
}

}  // namespace switchyard
