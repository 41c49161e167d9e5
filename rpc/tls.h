// Reads certificates and keys from PEM files, checks them, and makes gRPC credentials of them for either side.
//
// A server checks its files whenever a connection is made, and uses them when they have changed. Existing connections
// keep their certificates, so no call is dropped. Files that do not fit together (a new certificate whose key has not
// arrived yet) are not used: the pair in use stays, and the log says so. A client reads its files once.
//
// TLS 1.2 and 1.3, with gRPC's choice of ciphers.
#pragma once

#include <grpcpp/security/credentials.h>

#include <memory>
#include <optional>
#include <string>

#include "base/mutex.h"
#include "base/status.h"
#include "rpc/tls_files.h"

namespace switchyard {

// The files' texts.
struct TlsTexts {
  std::string cert, key, ca;
};

// Reads and checks the files that are given. Errors name the flag: a file cannot be read or holds no certificate or
// key, or a key does not belong to the certificate.
absl::StatusOr<TlsTexts> ReadTlsFiles(const TlsFiles& files);

// Reads a server's files again when they have changed. Thread-safe.
class TlsReloader {
 public:
  // Reads and checks the files; watches all that are given.
  static absl::StatusOr<std::unique_ptr<TlsReloader>> Open(const TlsFiles& files);

  // The texts to use from now on; nullopt when the texts that were returned last are still current. The first call
  // returns texts.
  std::optional<TlsTexts> TakeChange();

  bool verifies_clients() const { return files_.ca.given(); }

 private:
  struct Stamps {
    FileStamp cert, key, ca;
    bool operator==(const Stamps&) const = default;
  };

  TlsReloader(const TlsFiles& files, const Stamps& stamps, TlsTexts first)
      : files_(files), stamps_(stamps), fresh_(std::move(first)) {}
  static Stamps StampsOf(const TlsFiles& files);

  const TlsFiles files_;
  Mutex mu_;
  Stamps stamps_ ABSL_GUARDED_BY(mu_);
  std::optional<TlsTexts> fresh_ ABSL_GUARDED_BY(mu_);
};

// Credentials for a client. It checks the server's certificate against `ca`, or against the system's roots without one,
// and the certificate's name against the target's.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsChannelCredentials(const TlsFiles& files);

}  // namespace switchyard
