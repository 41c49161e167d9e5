#include "rpc/listen.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/unique_fd.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

absl::StatusOr<std::unique_ptr<grpc::Server>> Start(const std::string& host, int* port) {
  grpc::ServerBuilder builder;
  return StartServer(builder, grpc::InsecureServerCredentials(), host, 0, "--port", port);
}

bool Accepts(const sockaddr* address, socklen_t num_bytes) {
  const UniqueFd fd(socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return connect(fd.get(), address, num_bytes) == 0;
}

bool HasIpv6() {
  const UniqueFd fd(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 address = {};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  return fd.valid() && bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

bool AcceptsOnIpv4(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return Accepts(reinterpret_cast<sockaddr*>(&address), sizeof(address));
}

bool AcceptsOnIpv6(int port) {
  sockaddr_in6 address = {};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  address.sin6_port = htons(static_cast<uint16_t>(port));
  return Accepts(reinterpret_cast<sockaddr*>(&address), sizeof(address));
}

TEST(ListenTest, EveryWildcardMeansIpv4AndIpv6) {
  for (const char* host : {"0.0.0.0", "::", "[::]"}) {
    int port = 0;
    const auto server = Start(host, &port);
    ASSERT_TRUE(server.ok()) << server.status();
    EXPECT_TRUE(AcceptsOnIpv4(port)) << host;
    EXPECT_TRUE(!HasIpv6() || AcceptsOnIpv6(port)) << host;
  }
}

TEST(ListenTest, Ipv6WithAndWithoutBrackets) {
  if (!HasIpv6()) GTEST_SKIP() << "this machine has no IPv6";
  for (const char* host : {"::1", "[::1]"}) {
    int port = 0;
    const auto server = Start(host, &port);
    ASSERT_TRUE(server.ok()) << server.status();
    EXPECT_TRUE(AcceptsOnIpv6(port)) << host;
    EXPECT_FALSE(AcceptsOnIpv4(port)) << host;
  }
}

TEST(ListenTest, AnAddressOfAnotherMachineIsAnError) {
  int port = 0;
  const auto server = Start("203.0.113.7", &port);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("--port: cannot listen on 203.0.113.7:0"));
}

}  // namespace
}  // namespace switchyard
