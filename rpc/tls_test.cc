#include "rpc/tls.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace switchyard {
namespace {

std::string Path(const std::string& name) { return absl::StrCat(::testing::TempDir(), "/", name); }

void Write(const std::string& path, const std::string& text) {
  std::ofstream(path + ".new") << text;
  ASSERT_EQ(std::rename((path + ".new").c_str(), path.c_str()), 0);
}

// A self-signed certificate with its key, made by the openssl tool.
void MakePair(const std::string& name) {
  const std::string command =
      absl::StrCat("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=", name,
                   " -keyout ", Path(name + ".key"), " -out ", Path(name + ".pem"), " 2>/dev/null");
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

class Tls : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    MakePair("one");
    MakePair("two");
    Write(Path("text"), "no certificate");
  }

  static TlsFiles Files(const std::string& cert, const std::string& key, const std::string& ca = "") {
    return {{"--tls_cert", cert.empty() ? "" : Path(cert)},
            {"--tls_key", key.empty() ? "" : Path(key)},
            {"--tls_client_ca", ca.empty() ? "" : Path(ca)}};
  }

  static void ExpectRefused(const TlsFiles& files, const std::string& message) {
    const absl::Status status = ReadTlsFiles(files).status();
    EXPECT_FALSE(status.ok());
    EXPECT_NE(std::string(status.message()).find(message), std::string::npos) << status;
  }

  static std::string Text(const std::string& name) { return ReadFlagFile({"--f", Path(name)}).value(); }
};

TEST_F(Tls, APairIsRead) {
  const auto texts = ReadTlsFiles(Files("one.pem", "one.key", "two.pem"));
  ASSERT_TRUE(texts.ok()) << texts.status();
  EXPECT_EQ(texts->cert, Text("one.pem"));
  EXPECT_EQ(texts->key, Text("one.key"));
  EXPECT_EQ(texts->ca, Text("two.pem"));
}

TEST_F(Tls, ErrorsNameTheFlag) {
  ExpectRefused(Files("one.pem", ""), "--tls_key is needed with it");
  ExpectRefused(Files("", "one.key"), "--tls_cert is needed with it");
  ExpectRefused(Files("absent.pem", "one.key"), "--tls_cert=" + Path("absent.pem") + ": cannot be read");
  ExpectRefused(Files("text", "one.key"), "--tls_cert=" + Path("text") + ": expected a certificate in PEM form");
  ExpectRefused(Files("one.pem", "text"), "--tls_key=" + Path("text") + ": expected a private key in PEM form");
  ExpectRefused(Files("one.pem", "two.key"), "is not the key of the certificate --tls_cert=");
  ExpectRefused(Files("one.pem", "one.key", "text"), "--tls_client_ca=" + Path("text"));
  ExpectRefused({{"--tls_cert", ::testing::TempDir()}, {"--tls_key", Path("one.key")}, {}}, "cannot be read");
}

TEST_F(Tls, MutualTlsNeedsAllThree) {
  EXPECT_TRUE(CheckMutualTlsFlags(Files("", "")).ok());
  EXPECT_TRUE(CheckMutualTlsFlags(Files("one.pem", "one.key", "two.pem")).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(CheckMutualTlsFlags(Files("one.pem", "one.key"))));
  EXPECT_TRUE(absl::IsInvalidArgument(CheckMutualTlsFlags(Files("", "", "two.pem"))));
}

TEST_F(Tls, AReplacedPairIsTakenOnlyOnceItFits) {
  Write(Path("live.pem"), Text("one.pem"));
  Write(Path("live.key"), Text("one.key"));
  auto reloader = TlsReloader::Open(Files("live.pem", "live.key"));
  ASSERT_TRUE(reloader.ok()) << reloader.status();
  EXPECT_EQ((*reloader)->TakeChange()->cert, Text("one.pem"));
  EXPECT_FALSE((*reloader)->TakeChange().has_value());

  Write(Path("live.pem"), Text("two.pem"));
  EXPECT_FALSE((*reloader)->TakeChange().has_value()) << "a certificate without its key";
  Write(Path("live.key"), Text("two.key"));
  const auto changed = (*reloader)->TakeChange();
  ASSERT_TRUE(changed.has_value());
  EXPECT_EQ(changed->cert, Text("two.pem"));
  EXPECT_EQ(changed->key, Text("two.key"));
  EXPECT_FALSE((*reloader)->TakeChange().has_value());

  std::remove(Path("live.key").c_str());
  EXPECT_FALSE((*reloader)->TakeChange().has_value());
}

}  // namespace
}  // namespace switchyard
