// Which program this is: what `--version` prints, and the labels of the metric switchyard_build_info.
#pragma once

#include <string>
#include <string_view>

namespace switchyard {

// The commit that this program was built from, with "+dirty" when the tree differed from it. "unknown" unless Bazel was
// given --stamp.
std::string_view BuildCommit();

// "PROGRAM VERSION (commit COMMIT, build FINGERPRINT)", without a newline.
std::string VersionLine(std::string_view program);

}  // namespace switchyard
