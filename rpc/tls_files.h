// The flags that give one side of TLS its certificates.
#pragma once

#include "base/status.h"
#include "rpc/flag_file.h"

namespace switchyard {

struct TlsFiles {
  FlagFile cert;  // own certificate, followed by the intermediate certificates
  FlagFile key;   // the certificate's private key, without a passphrase
  FlagFile ca;    // roots that the other side's certificate must lead to
};

// InvalidArgument when a certificate is given without a key or the other way round.
absl::Status CheckTlsFlags(const TlsFiles& files);
// InvalidArgument when only some of the three are given.
absl::Status CheckMutualTlsFlags(const TlsFiles& files);

}  // namespace switchyard
