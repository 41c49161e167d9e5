// Tokens that let callers in, from a file of one a line:
//
//   # comment
//   c0ffee...                 a token
//   alice:deadbeef...         a token with a name, which the log may show
//
// Tokens are visible ASCII. The file is read again when it has changed, which is looked for at most ten times a second;
// a changed file that cannot be read or parsed changes nothing, and the log says so, while an empty one lets nobody in.
// Thread-safe.
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
  // Errors name the flag, and the line. A list without tokens is refused here.
  static absl::StatusOr<std::unique_ptr<TokenList>> Open(const FlagFile& file, const Clock& clock = Clock::Real());

  // In a time that does not depend on how much of a token is right.
  bool Has(absl::string_view token);

 private:
  // Tokens are kept as what SHA-256 makes of them: all of one length, and no use to who reads this memory.
  using Digest = std::array<unsigned char, 32>;
  using Digests = std::vector<Digest>;

  TokenList(const FlagFile& file, const Clock& clock, const FileStamp& stamp, Digests digests);
  static Digest DigestOf(absl::string_view token);
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

// The first token of a file of the form above, for who sends it.
absl::StatusOr<std::string> ReadToken(const FlagFile& file);

}  // namespace switchyard
