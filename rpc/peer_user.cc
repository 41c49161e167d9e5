#include "rpc/peer_user.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "rpc/loopback.h"

namespace switchyard {
namespace {

constexpr uint32_t kEstablished = 1;
constexpr size_t kIpv4Digits = 8, kIpv6Digits = 32;
constexpr size_t kNumFields = 10;      // those that are read, and those before them
constexpr uid_t kUsualNobody = 65534;  // when /proc does not say
constexpr int kTries = 3;              // the list is not read in one, so a socket may be missed while others change

struct Endpoint {
  in6_addr address = {};  // IPv4 as ::ffff:a.b.c.d
  int port = 0;
};

// One line of the lists.
struct Row {
  Endpoint local;
  int remote_port = 0;
  uint32_t state = 0;
  uint32_t user = 0;
  uint64_t inode = 0;
};

in6_addr Mapped(uint32_t ipv4) {
  in6_addr address = {};
  address.s6_addr[10] = address.s6_addr[11] = 0xff;
  std::memcpy(&address.s6_addr[12], &ipv4, sizeof(ipv4));
  return address;
}

// "0100007F:1F40": the address in words of 32 bits, each as a number of this machine's byte order.
std::optional<Endpoint> ParseEndpoint(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  uint32_t port = 0;
  if (parts.size() != 2 || !absl::SimpleHexAtoi(parts[1], &port)) return std::nullopt;
  if (parts[0].size() != kIpv4Digits && parts[0].size() != kIpv6Digits) return std::nullopt;
  uint32_t words[4] = {};
  for (size_t i = 0; i * 8 < parts[0].size(); ++i) {
    if (!absl::SimpleHexAtoi(parts[0].substr(i * 8, 8), &words[i])) return std::nullopt;
  }
  Endpoint endpoint = {Mapped(words[0]), static_cast<int>(port)};
  if (parts[0].size() == kIpv6Digits) std::memcpy(&endpoint.address, words, sizeof(words));
  return endpoint;
}

std::optional<Row> ParseRow(absl::string_view line) {
  const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (fields.size() < kNumFields) return std::nullopt;
  const auto local = ParseEndpoint(fields[1]), remote = ParseEndpoint(fields[2]);
  Row row;
  if (!local.has_value() || !remote.has_value() || !absl::SimpleHexAtoi(fields[3], &row.state) ||
      !absl::SimpleAtoi(fields[7], &row.user) || !absl::SimpleAtoi(fields[9], &row.inode)) {
    return std::nullopt;
  }
  row.local = *local;
  row.remote_port = remote->port;
  return row;
}

// "ipv4:127.0.0.1:40000" or "ipv6:[::1]:40000", whose brackets gRPC may have encoded.
std::optional<Endpoint> ParsePeer(const std::string& peer) {
  const std::string text = absl::StrReplaceAll(peer, {{"%5B", "["}, {"%5D", "]"}});
  const size_t colon = text.rfind(':');
  absl::string_view host = absl::string_view(text).substr(0, colon);
  Endpoint endpoint;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &endpoint.port)) return std::nullopt;
  in_addr ipv4 = {};
  if (absl::ConsumePrefix(&host, "ipv4:")) {
    if (!IsLoopback(std::string(host)) || inet_pton(AF_INET, std::string(host).c_str(), &ipv4) != 1) {
      return std::nullopt;
    }
    endpoint.address = Mapped(ipv4.s_addr);
    return endpoint;
  }
  if (!absl::ConsumePrefix(&host, "ipv6:[") || !absl::ConsumeSuffix(&host, "]") || !IsLoopback(std::string(host)) ||
      inet_pton(AF_INET6, std::string(host).c_str(), &endpoint.address) != 1) {
    return std::nullopt;
  }
  return endpoint;
}

// Whether the row is the peer's end of the connection. A socket without an inode belongs to no process any more, and
// the kernel shows it as root's.
bool IsPeer(const Row& row, const Endpoint& peer, int port) {
  return row.state == kEstablished && row.inode != 0 && row.remote_port == port && row.local.port == peer.port &&
         IN6_ARE_ADDR_EQUAL(&row.local.address, &peer.address);
}

std::string ReadAll(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

uid_t Nobody() {
  uid_t user = kUsualNobody;
  std::ifstream("/proc/sys/kernel/overflowuid") >> user;
  return user;
}

}  // namespace

absl::StatusOr<uid_t> UserOfPeerIn(std::string_view tcp, std::string_view tcp6, const std::string& peer, int port) {
  const auto wanted = ParsePeer(peer);
  if (!wanted.has_value()) return absl::FailedPreconditionError("it does not come over loopback");
  std::optional<uid_t> user;
  for (const std::string_view table : {tcp, tcp6}) {
    for (const absl::string_view line : absl::StrSplit(absl::string_view(table.data(), table.size()), '\n')) {
      const auto row = ParseRow(line);
      if (!row.has_value() || !IsPeer(*row, *wanted, port)) continue;
      // Connections to the same port of two loopback addresses may start at one address.
      if (user.has_value() && *user != row->user) return absl::FailedPreconditionError("two users have its address");
      user = row->user;
    }
  }
  if (!user.has_value()) return absl::FailedPreconditionError("the system does not show its socket");
  return *user;
}

absl::StatusOr<uid_t> UserOfPeer(const std::string& peer, int port) {
  absl::StatusOr<uid_t> user;
  for (int i = 0; i < kTries && !user.ok(); ++i) {
    user = UserOfPeerIn(ReadAll("/proc/thread-self/net/tcp"), ReadAll("/proc/thread-self/net/tcp6"), peer, port);
  }
  return user;
}

absl::Status CheckPeerIsOwnUser(const std::string& peer, int port) {
  const uid_t own = geteuid();
  if (own == Nobody()) return absl::FailedPreconditionError("this process runs as the user that stands for nobody");
  SY_ASSIGN_OR_RETURN(const uid_t user, UserOfPeer(peer, port));
  if (user == own) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("it is of user ", user, " and this process of user ", own));
}

}  // namespace switchyard
