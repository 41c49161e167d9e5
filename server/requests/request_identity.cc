#include "server/requests/request_identity.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <random>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr size_t kTraceDigits = 32;
constexpr size_t kSpanDigits = 16;
constexpr size_t kHeaderBytes = 2 + 1 + kTraceDigits + 1 + kSpanDigits + 1 + 2;

bool IsHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(std::string_view text) { return text.find_first_not_of('0') == std::string_view::npos; }

std::string MakeId() {
  static const uint64_t process = (uint64_t{std::random_device()()} << 32) | std::random_device()();
  static std::atomic<uint64_t> count = 0;
  return absl::StrCat(absl::Hex(process, absl::kZeroPad16), "-", absl::Hex(count.fetch_add(1) + 1));
}

}  // namespace

std::optional<TraceParent> ParseTraceParent(std::string_view header) {
  if (header.size() < kHeaderBytes) return std::nullopt;
  const std::string_view version = header.substr(0, 2);
  const std::string_view trace = header.substr(3, kTraceDigits);
  const std::string_view span = header.substr(4 + kTraceDigits, kSpanDigits);
  const std::string_view flags = header.substr(5 + kTraceDigits + kSpanDigits, 2);
  for (const size_t dash : {size_t{2}, 3 + kTraceDigits, 4 + kTraceDigits + kSpanDigits}) {
    if (header[dash] != '-') return std::nullopt;
  }
  for (const std::string_view part : {version, trace, span, flags}) {
    if (!IsHex(part)) return std::nullopt;
  }
  if (version == "ff" || IsZero(trace) || IsZero(span)) return std::nullopt;
  if (header.size() > kHeaderBytes && (version == "00" || header[kHeaderBytes] != '-')) return std::nullopt;
  return TraceParent{std::string(trace), std::string(span)};
}

std::string CleanId(std::string_view text) {
  std::string id(text.substr(0, kMaxRequestIdBytes));
  for (char& c : id) {
    if (c <= ' ' || c >= 0x7f || c == '"' || c == '\'' || c == '\\') c = '_';
  }
  return id;
}

RequestIdentity Identify(std::string_view request_id, std::string_view traceparent, std::string peer) {
  RequestIdentity identity;
  identity.peer = std::move(peer);
  if (!traceparent.empty()) identity.trace = ParseTraceParent(traceparent);
  if (!request_id.empty()) {
    identity.id = CleanId(request_id);
  } else {
    identity.id = identity.trace.has_value() ? identity.trace->trace_id : MakeId();
  }
  return identity;
}

}  // namespace switchyard
