// Makes text that others wrote safe to show on one line of a log or a terminal.
#pragma once

#include <string>
#include <string_view>

namespace switchyard {

// `text` with every control character, and every byte that is not of a whole UTF-8 character, as an escape: \n, \r, \t
// or \x1b. Other characters, also those outside ASCII, stay as they are.
std::string EscapeControls(std::string_view text);

}  // namespace switchyard
