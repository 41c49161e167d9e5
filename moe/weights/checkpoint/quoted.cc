#include "moe/weights/checkpoint/quoted.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace switchyard {

std::string Quoted(std::string_view text) {
  constexpr size_t kMaxBytes = 200;
  const bool cut = text.size() > kMaxBytes;
  const absl::string_view shown(text.data(), cut ? kMaxBytes : text.size());
  // A cut may fall inside a character, so its bytes are escaped too.
  return absl::StrCat("'", cut ? absl::CHexEscape(shown) : absl::Utf8SafeCHexEscape(shown), cut ? "...'" : "'");
}

}  // namespace switchyard
