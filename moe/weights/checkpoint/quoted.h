// Text from untrusted files, made fit for an error message.
#pragma once

#include <string>
#include <string_view>

namespace switchyard {

// 'text' with control characters escaped, cut after 200 bytes.
std::string Quoted(std::string_view text);

}  // namespace switchyard
