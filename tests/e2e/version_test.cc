// Every program says on stdout which version, commit and build it is of.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "rpc/version_line.h"

namespace switchyard {
namespace {

class VersionTest : public testing::TestWithParam<const char*> {};

TEST_P(VersionTest, IsPrintedOnStdout) {
  const std::string path = GetParam();
  FILE* pipe = popen((path + " --version").c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  char output[256] = "";
  const size_t size = fread(output, 1, sizeof(output) - 1, pipe);
  EXPECT_EQ(pclose(pipe), 0);
  EXPECT_EQ(std::string(output, size), VersionLine(path.substr(path.rfind('/') + 1)) + "\n");
}

INSTANTIATE_TEST_SUITE_P(Programs, VersionTest,
                         testing::Values("server/switchyard_server", "worker/switchyard_worker", "client/switchyard"));

}  // namespace
}  // namespace switchyard
