#include "base/escape_controls.h"

#include <algorithm>
#include <cstddef>

namespace switchyard {
namespace {

bool IsPlainAscii(unsigned char c) { return c >= ' ' && c < 0x7f; }

bool IsContinuation(unsigned char c) { return (c & 0xc0) == 0x80; }

// The bytes of the UTF-8 character at the beginning of `text`; 0 if there is none, or if it is a control character.
size_t CharacterSize(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (IsPlainAscii(byte(0))) return 1;
  const size_t size = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < size) return 0;
  for (size_t i = 1; i < size; ++i) {
    if (!IsContinuation(byte(i))) return 0;
  }
  // 0xc2 begins the control characters from U+0080 to U+009F. The others are longer than needed, surrogates, or beyond
  // the last character.
  const bool is_bad = (byte(0) == 0xc2 && byte(1) < 0xa0) || (byte(0) == 0xe0 && byte(1) < 0xa0) ||
                      (byte(0) == 0xed && byte(1) >= 0xa0) || (byte(0) == 0xf0 && byte(1) < 0x90) ||
                      (byte(0) == 0xf4 && byte(1) >= 0x90);
  return is_bad ? 0 : size;
}

void AppendEscape(unsigned char c, std::string* escaped) {
  constexpr char kDigits[] = "0123456789abcdef";
  if (c == '\n') {
    *escaped += "\\n";
  } else if (c == '\r') {
    *escaped += "\\r";
  } else if (c == '\t') {
    *escaped += "\\t";
  } else {
    *escaped += {'\\', 'x', kDigits[c >> 4], kDigits[c & 15]};
  }
}

}  // namespace

std::string EscapeControls(std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return IsPlainAscii(static_cast<unsigned char>(c)); })) {
    return std::string(text);
  }
  std::string escaped;
  while (!text.empty()) {
    const size_t size = CharacterSize(text);
    if (size > 0) {
      escaped += text.substr(0, size);
    } else {
      AppendEscape(static_cast<unsigned char>(text[0]), &escaped);
    }
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return escaped;
}

}  // namespace switchyard
