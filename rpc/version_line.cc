#include "rpc/version_line.h"

#include "base/version.h"
#include "rpc/build_commit.h"
#include "rpc/build_fingerprint.h"

namespace switchyard {

std::string_view BuildCommit() { return kBuildCommit; }

std::string VersionLine(std::string_view program) {
  std::string line(program);
  line.append(" ").append(kVersion);
  line.append(" (commit ").append(kBuildCommit);
  line.append(", build ").append(kBuildFingerprint).append(")");
  return line;
}

}  // namespace switchyard
