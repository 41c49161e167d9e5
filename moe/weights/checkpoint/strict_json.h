// JSON as this project accepts it from files: nlohmann's parser plus checks that it leaves out. A NUL byte, a duplicate
// key and excessive nesting are errors, and no exception leaves these functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace switchyard {

// Runs `handler` (nlohmann's SAX interface) over `text`. Returns false when the handler stopped the parse, or when the
// text is not one JSON value; in the latter case the handler's parse_error has been called, except for a NUL byte.
template <typename SaxHandler>
bool ParseSax(std::string_view text, SaxHandler* handler) {
  // nlohmann takes a NUL for the end of input and would ignore the rest of the text.
  if (text.find('\0') != std::string_view::npos) return false;
  return nlohmann::json::sax_parse(text.begin(), text.end(), handler);
}

// The value of `text`. InvalidArgument names the rule broken and where; the caller adds the file.
absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text);

// `value` as an error message shows what it found: the string 'abc', the number 3, true, null, an array,
// an object.
std::string Described(const nlohmann::json& value);

// `value` as text. InvalidArgument when a string in it is not UTF-8.
absl::StatusOr<std::string> DumpJson(const nlohmann::json& value);

}  // namespace switchyard
