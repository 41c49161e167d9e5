#include "rpc/token_list.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "base/logging/logging.h"

namespace switchyard {
namespace {

constexpr std::chrono::milliseconds kLookPeriod{100};

using Digest = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

Digest DigestOf(absl::string_view token) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

// Takes the same time whatever the digests are.
bool IsSame(const Digest& a, const Digest& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

bool IsVisibleAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

absl::StatusOr<std::vector<std::string>> ParseTokens(const FlagFile& file, absl::string_view text) {
  std::vector<std::string> tokens;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    const size_t colon = line.find(':');
    const absl::string_view token = colon == absl::string_view::npos ? line : line.substr(colon + 1);
    if (token.empty() || !IsVisibleAscii(token)) {
      return absl::InvalidArgumentError(absl::StrCat(file.flag, "=", file.path, ": line ", number,
                                                     ": expected TOKEN or NAME:TOKEN in visible ASCII"));
    }
    tokens.emplace_back(token);
  }
  return tokens;
}

absl::StatusOr<std::vector<std::string>> ReadTokens(const FlagFile& file) {
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFlagFile(file));
  return ParseTokens(file, text);
}

absl::Status NoToken(const FlagFile& file) {
  return absl::InvalidArgumentError(absl::StrCat(file.flag, "=", file.path, ": holds no token"));
}

}  // namespace

TokenList::TokenList(const FlagFile& file, const Clock& clock, const FileStamp& stamp, Digests digests)
    : file_(file),
      clock_(clock),
      next_look_(clock.Now() + kLookPeriod),
      stamp_(stamp),
      digests_(std::make_shared<const Digests>(std::move(digests))) {}

absl::StatusOr<std::unique_ptr<TokenList>> TokenList::Open(const FlagFile& file, const Clock& clock) {
  const FileStamp stamp = StampOf(file.path);  // before reading, so that a change in between is noticed and read again
  SY_ASSIGN_OR_RETURN(Digests digests, Read(file));
  if (digests.empty()) return NoToken(file);
  return std::unique_ptr<TokenList>(new TokenList(file, clock, stamp, std::move(digests)));
}

absl::StatusOr<TokenList::Digests> TokenList::Read(const FlagFile& file) {
  SY_ASSIGN_OR_RETURN(const std::vector<std::string> tokens, ReadTokens(file));
  Digests digests;
  for (const std::string& token : tokens) digests.push_back(DigestOf(token));
  return digests;
}

std::shared_ptr<const TokenList::Digests> TokenList::Current() {
  MutexLock lock(&mu_);
  const SteadyTime now = clock_.Now();
  if (now < next_look_) return digests_;
  next_look_ = now + kLookPeriod;
  const FileStamp stamp = StampOf(file_.path);
  if (stamp == stamp_) return digests_;
  stamp_ = stamp;
  absl::StatusOr<Digests> digests = Read(file_);
  if (!digests.ok()) {
    spdlog::error("the tokens in use stay: {}", digests.status().message());
    return digests_;
  }
  spdlog::info("{}: {} tokens from now on", file_.flag, digests->size());
  digests_ = std::make_shared<const Digests>(*std::move(digests));
  return digests_;
}

bool TokenList::Has(absl::string_view token) {
  const Digest digest = DigestOf(token);
  bool found = false;
  for (const Digest& known : *Current()) found |= IsSame(digest, known);
  return found;
}

absl::string_view BearerToken(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return {};
  return absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
}

bool SameToken(absl::string_view a, absl::string_view b) { return IsSame(DigestOf(a), DigestOf(b)); }

absl::StatusOr<std::string> ReadToken(const FlagFile& file) {
  SY_ASSIGN_OR_RETURN(const std::vector<std::string> tokens, ReadTokens(file));
  if (tokens.empty()) return NoToken(file);
  return tokens.front();
}

}  // namespace switchyard
