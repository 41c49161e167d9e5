#include "rpc/version_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/version.h"
#include "rpc/build_fingerprint.h"

namespace switchyard {
namespace {

TEST(VersionLine, NamesProgramVersionCommitAndBuild) {
  EXPECT_EQ(VersionLine("switchyard_server"), "switchyard_server " + std::string(kVersion) + " (commit " +
                                                  std::string(BuildCommit()) + ", build " +
                                                  std::string(kBuildFingerprint) + ")");
}

TEST(VersionLine, TheCommitIsAHashOrUnknown) {
  EXPECT_THAT(std::string(BuildCommit()), testing::MatchesRegex("unknown|[0-9a-f]+|[0-9a-f]+\\+dirty"));
}

}  // namespace
}  // namespace switchyard
