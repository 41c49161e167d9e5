// Certificates and keys in PEM files: read, checked, and made into gRPC credentials for either side.
//
// A server looks at its files whenever a connection is made, and takes them when they have changed; connections that
// stand keep what they were made with, so no call is dropped. Files that do not fit together (a new certificate whose
// key has not arrived yet) are not taken: the pair in use stays, and the log says so. A client's are read once.
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

// Those files that are given. Errors name the flag: a file that cannot be read or holds no certificate or key, a key
// that does not belong to the certificate.
absl::StatusOr<TlsTexts> ReadTlsFiles(const TlsFiles& files);

// Reads a server's files again when they have changed. Thread-safe.
class TlsReloader {
 public:
  // The files are read and checked; all given ones are watched.
  static absl::StatusOr<std::unique_ptr<TlsReloader>> Open(const TlsFiles& files);

  // The texts to use from now on; nullopt while those given out last are still right. The first call has some.
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

// For a client. The other side's certificate is checked against ca, or the system's roots without one, and its name
// against the target's.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsChannelCredentials(const TlsFiles& files);

}  // namespace switchyard
