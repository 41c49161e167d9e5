#include "rpc/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Deleter<BIO_free>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

Bio Reader(const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

absl::Status Wrong(const FlagFile& file, absl::string_view what) {
  ERR_clear_error();  // this thread's OpenSSL queue, in which gRPC would find the error otherwise
  return absl::InvalidArgumentError(absl::StrCat(file.flag, "=", file.path, ": ", what));
}

// Fails instead of asking at the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

absl::StatusOr<Certificate> ParseCertificate(const FlagFile& file, const std::string& text) {
  Certificate certificate(PEM_read_bio_X509(Reader(text).get(), nullptr, NoPassphrase, nullptr));
  if (certificate == nullptr) return Wrong(file, "expected a certificate in PEM form, found none");
  return certificate;
}

absl::Status CheckPair(const TlsFiles& files, const TlsTexts& texts) {
  SY_ASSIGN_OR_RETURN(const Certificate certificate, ParseCertificate(files.cert, texts.cert));
  const PrivateKey key(PEM_read_bio_PrivateKey(Reader(texts.key).get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) return Wrong(files.key, "expected a private key in PEM form, without a passphrase, found none");
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return Wrong(files.key, absl::StrCat("is not the key of the certificate ", files.cert.flag, "=", files.cert.path));
  }
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0) {
    spdlog::warn("{}={}: this certificate has expired, and clients will refuse it", files.cert.flag, files.cert.path);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TlsTexts> ReadTlsFiles(const TlsFiles& files) {
  SY_RETURN_IF_ERROR(CheckTlsFlags(files));
  TlsTexts texts;
  if (files.cert.given()) {
    SY_ASSIGN_OR_RETURN(texts.cert, ReadFlagFile(files.cert));
    SY_ASSIGN_OR_RETURN(texts.key, ReadFlagFile(files.key));
    SY_RETURN_IF_ERROR(CheckPair(files, texts));
  }
  if (files.ca.given()) {
    SY_ASSIGN_OR_RETURN(texts.ca, ReadFlagFile(files.ca));
    SY_RETURN_IF_ERROR(ParseCertificate(files.ca, texts.ca).status());
  }
  return texts;
}

absl::StatusOr<std::unique_ptr<TlsReloader>> TlsReloader::Open(const TlsFiles& files) {
  const Stamps stamps = StampsOf(files);  // before reading, so that a change in between is noticed and read again
  SY_ASSIGN_OR_RETURN(TlsTexts texts, ReadTlsFiles(files));
  return std::unique_ptr<TlsReloader>(new TlsReloader(files, stamps, std::move(texts)));
}

TlsReloader::Stamps TlsReloader::StampsOf(const TlsFiles& files) {
  return {StampOf(files.cert.path), StampOf(files.key.path), StampOf(files.ca.path)};
}

std::optional<TlsTexts> TlsReloader::TakeChange() {
  MutexLock lock(&mu_);
  const Stamps now = StampsOf(files_);
  if (now == stamps_) return std::exchange(fresh_, std::nullopt);
  stamps_ = now;
  absl::StatusOr<TlsTexts> texts = ReadTlsFiles(files_);
  if (texts.ok()) {
    spdlog::info("{}: the certificate was replaced; new connections get the new one", files_.cert.flag);
    fresh_.reset();
    return *std::move(texts);
  }
  spdlog::error("the certificate in use stays: {}", texts.status().message());
  return std::exchange(fresh_, std::nullopt);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsChannelCredentials(const TlsFiles& files) {
  SY_ASSIGN_OR_RETURN(const TlsTexts texts, ReadTlsFiles(files));
  return grpc::SslCredentials({.pem_root_certs = texts.ca, .pem_private_key = texts.key, .pem_cert_chain = texts.cert});
}

}  // namespace switchyard
