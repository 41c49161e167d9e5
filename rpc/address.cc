#include "rpc/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

constexpr absl::string_view kUnixPrefix = "unix:";
constexpr size_t kMaxNameBytes = 253;

absl::Status Bad(absl::string_view flag, absl::string_view text, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(flag, "=", text, ": expected ", expected));
}

bool IsIpv4(const std::string& text) {
  in_addr address;
  return inet_pton(AF_INET, text.c_str(), &address) == 1;
}

// With or without a zone ("fe80::1%eth0").
bool IsIpv6(const std::string& text) {
  in6_addr address;
  const size_t percent = text.find('%');
  if (percent != std::string::npos && percent + 1 == text.size()) return false;
  return inet_pton(AF_INET6, text.substr(0, percent).c_str(), &address) == 1;
}

// Names are of letters, digits, dots, dashes and underscores. One of digits and dots only would be half an address.
bool IsName(const std::string& text) {
  const auto is_part = [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_'; };
  const auto is_numeric = [](unsigned char c) { return std::isdigit(c) != 0 || c == '.'; };
  return !text.empty() && text.size() <= kMaxNameBytes && std::all_of(text.begin(), text.end(), is_part) &&
         !std::all_of(text.begin(), text.end(), is_numeric) && text[0] != '-' && text[0] != '.';
}

// Takes off the brackets of "[::1]".
std::string WithoutBrackets(const std::string& text) {
  const bool has_brackets =
      text.size() > 2 && text.front() == '[' && text.back() == ']' && IsIpv6(text.substr(1, text.size() - 2));
  return has_brackets ? text.substr(1, text.size() - 2) : text;
}

absl::StatusOr<int> ParsePort(const std::string& text, absl::string_view flag, const std::string& whole) {
  int port = 0;
  const bool is_number = !text.empty() && text.size() <= 5 &&
                         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  if (is_number && absl::SimpleAtoi(text, &port) && port >= 1 && port <= 65535) return port;
  return Bad(flag, whole, absl::StrCat("HOST:PORT with a port from 1 to 65535, found '", text, "'"));
}

struct FreeAddrInfo {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using AddrInfo = std::unique_ptr<addrinfo, FreeAddrInfo>;

// Null with *error set when it does not resolve.
AddrInfo LookUp(const std::string& host, int port, int flags, int* error) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  *error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  return AddrInfo(*error == 0 ? found : nullptr);
}

std::string Digits(const sockaddr* address, socklen_t num_bytes) {
  std::array<char, NI_MAXHOST> text{};
  const int error = getnameinfo(address, num_bytes, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST);
  return error == 0 ? text.data() : "";
}

// The address of the interface of this name; IPv4 first, and a link-local one last.
std::string AddressOfInterface(const std::string& name) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return "";
  std::string best;
  int best_rank = 3;
  for (const ifaddrs* each = all; each != nullptr; each = each->ifa_next) {
    if (name != each->ifa_name || each->ifa_addr == nullptr) continue;
    const int family = each->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(each->ifa_addr);
    const int rank = family == AF_INET ? 0 : IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr) ? 2 : 1;
    if (rank >= best_rank) continue;
    best_rank = rank;
    best = Digits(each->ifa_addr, family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
  }
  freeifaddrs(all);
  return best;
}

// Whether a socket of this machine can have the address.
bool IsOwn(const addrinfo& entry) {
  const UniqueFd fd(socket(entry.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return fd.valid() && bind(fd.get(), entry.ai_addr, entry.ai_addrlen) == 0;
}

}  // namespace

std::string Address::ToString() const {
  return is_unix() ? absl::StrCat(kUnixPrefix, unix_path) : JoinHostPort(host, port);
}

absl::StatusOr<std::string> ParseHost(const std::string& text, absl::string_view flag) {
  const std::string host = WithoutBrackets(text);
  if (IsIpAddress(host) || IsName(host)) return host;
  if (absl::StartsWith(text, kUnixPrefix)) {
    return Bad(flag, text, "a host, because this does not listen on Unix sockets");
  }
  return Bad(flag, text, "an IPv4 address, an IPv6 address or a name, without a port");
}

absl::StatusOr<Address> ParseAddress(const std::string& text, absl::string_view flag) {
  constexpr char kForms[] = "HOST:PORT, [IPV6]:PORT or unix:PATH";
  if (absl::StartsWith(text, kUnixPrefix)) {
    const std::string path = text.substr(kUnixPrefix.size());
    if (path.empty()) return Bad(flag, text, kForms);
    if (path.size() >= sizeof(sockaddr_un::sun_path)) return Bad(flag, text, "a path of at most 107 characters");
    return Address{.unix_path = path};
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return Bad(flag, text, kForms);
  const std::string host = text.substr(0, colon);
  // "::1:8001" could also be an address without a port.
  if (IsIpv6(text) || IsIpv6(host)) return Bad(flag, text, "brackets around an IPv6 address: [IPV6]:PORT");
  const std::string bare = WithoutBrackets(host);
  if (!IsIpAddress(bare) && !IsName(bare)) return Bad(flag, text, kForms);
  SY_ASSIGN_OR_RETURN(const int port, ParsePort(text.substr(colon + 1), flag, text));
  return Address{.host = bare, .port = port};
}

std::string JoinHostPort(const std::string& host, int port) {
  const std::string bare = WithoutBrackets(host);
  return IsIpv6(bare) ? absl::StrCat("[", bare, "]:", port) : absl::StrCat(bare, ":", port);
}

bool IsWildcard(const std::string& host) {
  in_addr v4;
  in6_addr v6;
  const std::string bare = WithoutBrackets(host);
  if (inet_pton(AF_INET, bare.c_str(), &v4) == 1) return v4.s_addr == htonl(INADDR_ANY);
  return inet_pton(AF_INET6, bare.c_str(), &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6);
}

bool IsIpAddress(const std::string& text) { return IsIpv4(text) || IsIpv6(text); }

absl::StatusOr<std::string> ResolveOwnAddress(const std::string& host, absl::string_view flag) {
  if (IsWildcard(host)) return Bad(flag, host, "one address, because the other workers are told to connect to it");
  if (std::string address = AddressOfInterface(host); !address.empty()) return address;
  constexpr char kOwn[] = "an address, a name or an interface of this machine";
  SY_ASSIGN_OR_RETURN(const std::string bare, ParseHost(host, flag));
  int error = 0;
  const AddrInfo found = LookUp(bare, 0, IsIpAddress(bare) ? AI_NUMERICHOST : 0, &error);
  if (found == nullptr) return Bad(flag, host, absl::StrCat(kOwn, ": ", gai_strerror(error)));
  for (const addrinfo* entry = found.get(); entry != nullptr; entry = entry->ai_next) {
    if (IsOwn(*entry)) return Digits(entry->ai_addr, entry->ai_addrlen);
  }
  return Bad(flag, host, kOwn);
}

absl::StatusOr<std::string> OwnAddressTowards(const Address& peer) {
  if (peer.is_unix()) return "127.0.0.1";
  int error = 0;
  const AddrInfo found = LookUp(peer.host, peer.port, 0, &error);
  if (found == nullptr) return absl::UnavailableError(absl::StrCat(peer.host, ": ", gai_strerror(error)));
  for (const addrinfo* entry = found.get(); entry != nullptr; entry = entry->ai_next) {
    // Connecting a datagram socket only chooses the way.
    const UniqueFd fd(socket(entry->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage own{};
    socklen_t num_bytes = sizeof(own);
    if (fd.valid() && connect(fd.get(), entry->ai_addr, entry->ai_addrlen) == 0 &&
        getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &num_bytes) == 0) {
      return Digits(reinterpret_cast<const sockaddr*>(&own), num_bytes);
    }
  }
  return absl::UnavailableError(absl::StrCat("there is no way from this machine to ", peer.ToString()));
}

}  // namespace switchyard
