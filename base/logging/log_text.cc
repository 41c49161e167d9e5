#include "base/logging/log_text.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace switchyard {
namespace {

constexpr size_t kMaxNameBytes = 64;

unsigned char ByteAt(std::string_view text, size_t i) { return static_cast<unsigned char>(text[i]); }

bool ContinuesCharacter(unsigned char byte) { return (byte & 0xc0) == 0x80; }

// The smallest code point that needs so many bytes; a shorter form of it is not UTF-8.
constexpr unsigned kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};

// The length of the printable character at the beginning of `text`; 0 when a byte has to be escaped.
size_t PrintableLength(std::string_view text) {
  const unsigned char first = ByteAt(text, 0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  unsigned code = first & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if (!ContinuesCharacter(ByteAt(text, i))) return 0;
    code = code << 6 | (ByteAt(text, i) & 0x3f);
  }
  const bool is_surrogate = code >= 0xd800 && code <= 0xdfff;
  const bool is_control = code < 0xa0;  // C1, which terminals obey like C0
  return code < kSmallest[length] || code > 0x10ffff || is_surrogate || is_control ? 0 : length;
}

std::string EscapedByte(unsigned char byte) {
  if (byte == '\n') return "\\n";
  if (byte == '\t') return "\\t";
  if (byte == '\r') return "\\r";
  return absl::StrFormat("\\x%02x", byte);
}

}  // namespace

std::string CutForLog(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return std::string(text);
  size_t end = max_bytes;
  while (end > 0 && max_bytes - end < 4 && ContinuesCharacter(ByteAt(text, end))) --end;
  return absl::StrCat(std::string(text.substr(0, end)), "… (", text.size() - end, " more bytes)");
}

std::string EscapedForLog(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  while (!text.empty()) {
    const size_t length = PrintableLength(text);
    if (length > 0) {
      escaped.append(text.substr(0, length));
    } else {
      escaped += EscapedByte(ByteAt(text, 0));
    }
    text.remove_prefix(length > 0 ? length : 1);
  }
  return escaped;
}

std::string NameForLog(std::string_view name) { return EscapedForLog(CutForLog(name, kMaxNameBytes)); }

}  // namespace switchyard
