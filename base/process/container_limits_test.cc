#include "base/process/container_limits.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>

namespace switchyard {
namespace {

constexpr int64_t kMi = 1 << 20;

// A root folder with the given files.
ContainerLimits LimitsWith(const std::map<std::string, std::string>& files) {
  static int count = 0;
  const std::string root = testing::TempDir() + "/root" + std::to_string(++count);
  std::filesystem::remove_all(root);
  for (const auto& [path, text] : files) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  }
  return ReadContainerLimits(root);
}

constexpr char kMountV2[] =
    "22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw\n"
    "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

TEST(ContainerLimits, NothingToReadLimitsNothing) {
  const ContainerLimits limits = LimitsWith({});
  EXPECT_FALSE(limits.cpus.has_value() || limits.memory_bytes.has_value() || limits.processes.has_value());
}

TEST(ContainerLimits, Version2InANamespaceOfItsOwn) {
  const ContainerLimits limits = LimitsWith({{"/proc/self/cgroup", "0::/\n"},
                                             {"/proc/self/mountinfo", kMountV2},
                                             {"/sys/fs/cgroup/cpu.max", "150000 100000\n"},
                                             {"/sys/fs/cgroup/memory.max", "536870912\n"},
                                             {"/sys/fs/cgroup/pids.max", "64\n"}});
  EXPECT_EQ(limits.cpus, 1.5);
  EXPECT_EQ(limits.memory_bytes, 512 * kMi);
  EXPECT_EQ(limits.processes, 64);
}

TEST(ContainerLimits, Version2TakesTheLowestOfAllLevels) {
  const ContainerLimits limits = LimitsWith({{"/proc/self/cgroup", "0::/kubepods/pod1/main\n"},
                                             {"/proc/self/mountinfo", kMountV2},
                                             {"/sys/fs/cgroup/kubepods/cpu.max", "800000 100000\n"},
                                             {"/sys/fs/cgroup/kubepods/memory.max", "max\n"},
                                             {"/sys/fs/cgroup/kubepods/pod1/cpu.max", "200000 100000\n"},
                                             {"/sys/fs/cgroup/kubepods/pod1/memory.max", "1048576\n"},
                                             {"/sys/fs/cgroup/kubepods/pod1/main/cpu.max", "max 100000\n"},
                                             {"/sys/fs/cgroup/kubepods/pod1/main/memory.max", "2097152\n"},
                                             {"/sys/fs/cgroup/kubepods/pod2/cpu.max", "1000 100000\n"}});
  EXPECT_EQ(limits.cpus, 2);
  EXPECT_EQ(limits.memory_bytes, kMi);
  EXPECT_FALSE(limits.processes.has_value());
}

TEST(ContainerLimits, Version1WithAHierarchyForEachController) {
  const ContainerLimits limits =
      LimitsWith({{"/proc/self/cgroup",
                   "9:pids:/docker/abc\n4:memory:/docker/abc\n3:cpuacct,cpu:/docker/abc\n2:cpuset:/\n0::/elsewhere\n"},
                  // The container sees its own group alone, at the mount point.
                  {"/proc/self/mountinfo",
                   "40 30 0:35 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
                   "41 30 0:36 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
                   "42 30 0:37 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n"
                   "43 30 0:38 /docker/abc /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n"},
                  {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n"},
                  {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"},
                  {"/sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "1\n"},
                  {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"},
                  {"/sys/fs/cgroup/pids/pids.max", "max\n"}});
  EXPECT_EQ(limits.cpus, 3);
  EXPECT_EQ(limits.memory_bytes, 1024 * kMi);
  EXPECT_FALSE(limits.processes.has_value());
}

TEST(ContainerLimits, Version1WithoutLimitsAndWithALevelAbove) {
  const ContainerLimits limits =
      LimitsWith({{"/proc/self/cgroup", "3:cpu,cpuacct:/slice/a b\n4:memory:/slice/a b\n"},
                  {"/proc/self/mountinfo",
                   "40 30 0:35 / /cg\\040roups/cpu ro shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct\n"
                   "41 30 0:36 / /cg\\040roups/memory ro - cgroup cgroup rw,memory\n"},
                  {"/cg roups/cpu/slice/a b/cpu.cfs_quota_us", "-1\n"},
                  {"/cg roups/cpu/slice/a b/cpu.cfs_period_us", "100000\n"},
                  {"/cg roups/cpu/slice/cpu.cfs_quota_us", "50000\n"},
                  {"/cg roups/cpu/slice/cpu.cfs_period_us", "100000\n"},
                  {"/cg roups/memory/slice/a b/memory.limit_in_bytes", "9223372036854771712\n"}});
  EXPECT_EQ(limits.cpus, 0.5);
  EXPECT_FALSE(limits.memory_bytes.has_value());
}

TEST(ContainerLimits, StrangeFilesLimitNothing) {
  const ContainerLimits limits =
      LimitsWith({{"/proc/self/cgroup", "0::\nnonsense\n:\n0::/../..\n"},
                  {"/proc/self/mountinfo", "a b c\n - \n1 2 3 / /x - cgroup2\n" + std::string(kMountV2)},
                  {"/sys/fs/cgroup/cpu.max", "0 0\n"},
                  {"/sys/fs/cgroup/memory.max", "\n"},
                  {"/sys/fs/cgroup/pids.max", "-7 99999999999999999999999\n"}});
  EXPECT_FALSE(limits.cpus.has_value() || limits.memory_bytes.has_value() || limits.processes.has_value());
}

TEST(CpuShare, IsTheLessOfCoresAndTime) {
  EXPECT_EQ(ShareOf(8, {}).num_threads, 8);
  EXPECT_FALSE(ShareOf(8, {}).is_limited());
  EXPECT_EQ(ShareOf(8, {.cpus = 2.9}).num_threads, 2);
  EXPECT_TRUE(ShareOf(8, {.cpus = 2.9}).is_limited());
  EXPECT_EQ(ShareOf(8, {.cpus = 0.1}).num_threads, 1);
  EXPECT_EQ(ShareOf(2, {.cpus = 64}).num_threads, 2);
  EXPECT_FALSE(ShareOf(2, {.cpus = 64}).is_limited());
}

TEST(CpuShare, OfThisProcessIsPossible) {
  EXPECT_GE(OwnCpuShare().num_threads, 1);
  EXPECT_LE(OwnCpuShare().num_threads, OwnCpuShare().num_cores);
  EXPECT_GT(MemoryLimit(), 0);
}

TEST(ThreadWaiting, SpinsOnlyWhileThereAreCores) {
  unsetenv("OMP_WAIT_POLICY");
  unsetenv("GOMP_SPINCOUNT");
  EXPECT_EQ(ThreadWaiting(OwnCpuShare().num_cores + 1), std::vector<std::string>{"OMP_WAIT_POLICY=passive"});
  EXPECT_EQ(ThreadWaiting(1).size(), OwnCpuShare().is_limited() ? 1 : 2);
  setenv("GOMP_SPINCOUNT", "7", 1);
  EXPECT_TRUE(ThreadWaiting(1).empty());
}

}  // namespace
}  // namespace switchyard
