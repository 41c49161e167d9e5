#include "rpc/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "rpc/loopback.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

TEST(AddressTest, AddressesToConnectTo) {
  const struct {
    const char* text;
    const char* host;
    int port;
    const char* unix_path;
  } kCases[] = {
      {"127.0.0.1:8001", "127.0.0.1", 8001, ""},
      {"[::1]:8001", "::1", 8001, ""},
      {"[2001:db8::7]:1", "2001:db8::7", 1, ""},
      {"[fe80::1%eth0]:8001", "fe80::1%eth0", 8001, ""},
      {"front:65535", "front", 65535, ""},
      {"front.default.svc.cluster.local:8003", "front.default.svc.cluster.local", 8003, ""},
      {"a_b-c.d:8003", "a_b-c.d", 8003, ""},
      {"unix:/run/front.sock", "", 0, "/run/front.sock"},
      {"unix:front.sock", "", 0, "front.sock"},
  };
  for (const auto& each : kCases) {
    const auto address = ParseAddress(each.text, "--front");
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->host, each.host);
    EXPECT_EQ(address->port, each.port);
    EXPECT_EQ(address->unix_path, each.unix_path);
    EXPECT_EQ(address->ToString(), each.text);
  }
}

TEST(AddressTest, OtherTextsAreRefusedByFlag) {
  for (const char* text : {"",
                           ":",
                           ":8001",
                           "front",
                           "front:",
                           "front:0",
                           "front:65536",
                           "front:80a",
                           "front:-1",
                           "front:+1",
                           "front: 1",
                           "front:999999999999",
                           "a b:1",
                           "a/b:1",
                           "[::1]",
                           "[::1]:",
                           "[::1:8001",
                           "::1]:8001",
                           "[]:1",
                           "[front]:1",
                           "[127.0.0.1]:1",
                           "1.2.3:1",
                           "300.1.1.1:1",
                           "-a:1",
                           ".:1",
                           "unix:",
                           "http://front:1",
                           "front:1:2",
                           "fr\nont:1"}) {
    const auto address = ParseAddress(text, "--front");
    EXPECT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(MessageOf(address.status()), StartsWith(absl::StrCat("--front=", text, ": expected")));
  }
  for (const char* text : {"::1:8001", "::1", "2001:db8::7:80"}) {
    EXPECT_THAT(ParseAddress(text, "--front").status().message(), HasSubstr("brackets")) << text;
  }
  EXPECT_FALSE(ParseAddress("unix:" + std::string(108, 'x'), "--front").ok());
}

TEST(AddressTest, HostsToListenOn) {
  for (const auto& [text, host] : std::vector<std::pair<std::string, std::string>>{{"127.0.0.1", "127.0.0.1"},
                                                                                   {"0.0.0.0", "0.0.0.0"},
                                                                                   {"::", "::"},
                                                                                   {"[::]", "::"},
                                                                                   {"[::1]", "::1"},
                                                                                   {"localhost", "localhost"}}) {
    const auto parsed = ParseHost(text, "--host");
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, host);
  }
  for (const char* text : {"", "127.0.0.1:80", "[::1]:80", "a b", "unix:/run/x", "[localhost]", ":::", "1.2.3.4.5"}) {
    EXPECT_THAT(MessageOf(ParseHost(text, "--host").status()), StartsWith(absl::StrCat("--host=", text, ": expected")));
  }
}

TEST(AddressTest, Ipv6HostsGetBrackets) {
  EXPECT_EQ(JoinHostPort("::", 1), "[::]:1");
  EXPECT_EQ(JoinHostPort("[::1]", 1), "[::1]:1");
  EXPECT_EQ(JoinHostPort("127.0.0.1", 1), "127.0.0.1:1");
  EXPECT_EQ(JoinHostPort("front", 1), "front:1");
}

TEST(AddressTest, WildcardsAndLoopback) {
  for (const char* host : {"::", "[::]", "0.0.0.0", "0:0:0:0:0:0:0:0"}) EXPECT_TRUE(IsWildcard(host)) << host;
  for (const char* host : {"::1", "127.0.0.1", "front"}) EXPECT_FALSE(IsWildcard(host)) << host;
  for (const char* host : {"127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"}) {
    EXPECT_TRUE(IsLoopback(host)) << host;
  }
  // The first two are names that anybody may own.
  for (const char* host : {"127.example.com", "127.0.0.1.example.com", "0.0.0.0", "::", "::2", "10.0.0.1", ""}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
}

TEST(AddressTest, OwnAddressesByAddressInterfaceAndName) {
  for (const auto& [host, address] : std::vector<std::pair<std::string, std::string>>{
           {"127.0.0.1", "127.0.0.1"}, {"lo", "127.0.0.1"}, {"localhost", ""}}) {
    const auto own = ResolveOwnAddress(host, "--exchange_host");
    ASSERT_TRUE(own.ok()) << own.status();
    EXPECT_TRUE(address.empty() ? IsIpAddress(*own) : *own == address) << *own;
  }
  for (const char* host : {"eth9", "203.0.113.7", "0.0.0.0", "::", "", "a b", "127.0.0.1:80", "\xff\xfe"}) {
    const auto own = ResolveOwnAddress(host, "--exchange_host");
    EXPECT_EQ(own.status().code(), absl::StatusCode::kInvalidArgument) << host;
    EXPECT_THAT(MessageOf(own.status()), StartsWith("--exchange_host=")) << host;
  }
}

TEST(AddressTest, OwnAddressTowardsAPeer) {
  EXPECT_EQ(*OwnAddressTowards({.host = "127.0.0.1", .port = 8003}), "127.0.0.1");
  EXPECT_EQ(*OwnAddressTowards({.unix_path = "/run/front"}), "127.0.0.1");
  EXPECT_EQ(OwnAddressTowards({.host = "no-such-host.invalid", .port = 1}).status().code(),
            absl::StatusCode::kUnavailable);
}

// Every address that is taken means the same when it is written out and read again.
TEST(AddressTest, RandomTextsAreRefusedOrRoundTrip) {
  constexpr absl::string_view kLetters = "0123456789abcdef::::....[[]]%-_ux:/ \n";
  std::mt19937 random(3);
  int num_taken = 0;
  for (int round = 0; round < 300'000; ++round) {
    std::string text;
    for (uint32_t left = random() % 24; left > 0; --left) text += kLetters[random() % kLetters.size()];
    if (round % 2 == 0) text += absl::StrCat(":", random() % 70'000);
    if (round % 8 == 0) text = absl::StrCat("unix:", text);
    (void)IsLoopback(text);
    (void)IsWildcard(text);
    (void)ParseHost(text, "--host").ok();
    const auto address = ParseAddress(text, "--front");
    if (!address.ok()) continue;
    ++num_taken;
    const auto again = ParseAddress(address->ToString(), "--front");
    ASSERT_TRUE(again.ok()) << text << " became " << address->ToString();
    EXPECT_EQ(again->host, address->host);
    EXPECT_EQ(again->port, address->port);
    EXPECT_EQ(again->unix_path, address->unix_path);
  }
  EXPECT_GT(num_taken, 1000);
}

}  // namespace
}  // namespace switchyard
