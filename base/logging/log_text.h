// Text that others wrote, such as names, paths and messages, as the log shows it.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace switchyard {

// Cuts `text` after about `max_bytes`, between two characters, and then says how many bytes are missing.
std::string CutForLog(std::string_view text, size_t max_bytes);

// `text` on one line, as UTF-8, and without anything that a terminal obeys: control characters and bytes that are not
// UTF-8 come as \n, \t or \xNN.
std::string EscapedForLog(std::string_view text);

// A name that came from a peer: cut to a readable length and escaped.
std::string NameForLog(std::string_view name);

}  // namespace switchyard
