#include "rpc/tls_files.h"

namespace switchyard {
namespace {

absl::Status CheckTogether(const FlagFile& a, const FlagFile& b) {
  if (a.given() == b.given()) return absl::OkStatus();
  const FlagFile& given = a.given() ? a : b;
  const FlagFile& missing = a.given() ? b : a;
  return absl::InvalidArgumentError(
      absl::StrCat(given.flag, "=", given.path, ": ", missing.flag, " is needed with it"));
}

}  // namespace

absl::Status CheckTlsFlags(const TlsFiles& files) { return CheckTogether(files.cert, files.key); }

absl::Status CheckMutualTlsFlags(const TlsFiles& files) {
  SY_RETURN_IF_ERROR(CheckTogether(files.cert, files.key));
  return CheckTogether(files.cert, files.ca);
}

}  // namespace switchyard
