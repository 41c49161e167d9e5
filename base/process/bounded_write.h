// Writing to stdout and stderr without being stopped by a reader that does not read: a pipe that is full, a terminal
// that was stopped.
//
// Thread-safe.
#pragma once

#include <chrono>
#include <string_view>

namespace switchyard {

// Makes writes to `fd` fail with EAGAIN instead of waiting, for every writer of this process, libraries included. A
// pipe or a terminal is opened anew for that, because whoever else has it open must not notice. A regular file stays
// as it is, because writing to it waits for nobody. Does nothing when `fd` is closed, or for a terminal that cannot be
// opened: writers poll such a terminal first.
void KeepFromBlocking(int fd);

enum class WriteOutcome { kWritten, kTimedOut, kFailed };

// Writes all of `text` to `fd`. Waits at most `patience` in all for room.
WriteOutcome WriteWithin(int fd, std::string_view text, std::chrono::milliseconds patience);
// The same, and leaves in `rest` what is not written yet, for another try.
WriteOutcome WriteSome(int fd, std::chrono::milliseconds patience, std::string_view* rest);

}  // namespace switchyard
