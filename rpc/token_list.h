// The tokens that let callers in, from a file with one token per line:
//
//   # comment
//   c0ffee...                 a token
//   alice:deadbeef...         a token with a name, which the log may show
//
// Tokens are visible ASCII. The file is checked for changes at most ten times a second, and read again when it has
// changed. If the changed file cannot be read or parsed, the tokens in use stay, and the log says so. If it holds no
// token, no caller is let in. Thread-safe.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"
#include "rpc/flag_file.h"

namespace switchyard {

class TokenList {
 public:
  // Errors name the flag, and the line. A file without tokens is an error here.
  static absl::StatusOr<std::unique_ptr<TokenList>> Open(const FlagFile& file, const Clock& clock = Clock::Real());

  // The time that this takes does not depend on how much of a token is right.
  bool Has(absl::string_view token);

 private:
  // Tokens are kept as SHA-256 digests: all have one length, and an attacker who reads this memory cannot use them.
  using Digest = std::array<unsigned char, 32>;
  using Digests = std::vector<Digest>;

  TokenList(const FlagFile& file, const Clock& clock, const FileStamp& stamp, Digests digests);
  static absl::StatusOr<Digests> Read(const FlagFile& file);
  std::shared_ptr<const Digests> Current();

  const FlagFile file_;
  const Clock& clock_;
  Mutex mu_;
  SteadyTime next_look_ ABSL_GUARDED_BY(mu_);
  FileStamp stamp_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const Digests> digests_ ABSL_GUARDED_BY(mu_);
};

// The token of "Bearer TOKEN", the value of the metadata `authorization`; empty for anything else.
absl::string_view BearerToken(absl::string_view authorization);

// Whether two tokens are equal. The time that this takes does not depend on how much of one is right, nor on the length
// of the right one.
bool SameToken(absl::string_view a, absl::string_view b);

// The first token of such a file, for a client that sends it.
absl::StatusOr<std::string> ReadToken(const FlagFile& file);

}  // namespace switchyard
