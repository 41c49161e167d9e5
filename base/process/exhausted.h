// Says which limit has run out when the system refuses something: "File too large" alone helps nobody who does not know
// that `ulimit -f` is set.
#pragma once

#include <string>

#include "base/status.h"

namespace switchyard {

// The text of an error number, with the limit that it may come from: open files, or sizes of files.
std::string DescribeErrno(int error_number);
// The same for the start of a thread or a process.
std::string DescribeStartErrno(int error_number);

// Checks that this process can start `count` threads more, by starting and ending them. RESOURCE_EXHAUSTED names the
// limits. Libraries that cannot start a thread end the process without a reason, so ask before they try.
absl::Status CheckThreads(int count);

// When an exception ends `program`, because it could not start a thread or get memory, lets it say so and end with
// status 1 and without a core. `program` lives for ever. Call once.
void NameLimitsAtTheEnd(const char* program);

}  // namespace switchyard
