// Addresses as flags have them: one parser for all, which says what is wrong and with which flag.
//
//   to connect to    HOST:PORT, [IPV6]:PORT or unix:PATH
//   to listen on     HOST; :: and 0.0.0.0 both mean every address of this machine, IPv4 and IPv6
//   of this machine  HOST or the name of an interface (--exchange_host)
//
// HOST is an IPv4 address, an IPv6 address with or without brackets, or a name. Thread-safe.
#pragma once

#include <string>

#include "base/status.h"

namespace switchyard {

struct Address {
  std::string host;  // without brackets; empty for a Unix socket
  int port = 0;
  std::string unix_path;

  bool is_unix() const { return !unix_path.empty(); }
  // As gRPC takes it, and as people write it.
  std::string ToString() const;
};

// An address to connect to. InvalidArgument, beginning with `flag`, for anything else.
absl::StatusOr<Address> ParseAddress(const std::string& text, absl::string_view flag);

// A host to listen on or to reach, as it is used further: without brackets.
absl::StatusOr<std::string> ParseHost(const std::string& text, absl::string_view flag);

// HOST:PORT, with brackets around an IPv6 address.
std::string JoinHostPort(const std::string& host, int port);

// Whether `host` means every address of this machine.
bool IsWildcard(const std::string& host);

// Whether `text`, without brackets, is an IPv4 or IPv6 address.
bool IsIpAddress(const std::string& text);

// The address, as digits, that `host` means among those of this machine: the address itself, the first address of the
// interface of that name, or the first that a name stands for. InvalidArgument, beginning with `flag`, for a wildcard
// and for what is not this machine's.
absl::StatusOr<std::string> ResolveOwnAddress(const std::string& host, absl::string_view flag);

// The address, as digits, from which this machine would connect to `peer`: the one at which the peer's network reaches
// it. Loopback for a Unix socket. Sends nothing. Unavailable when the name does not resolve or there is no way there.
absl::StatusOr<std::string> OwnAddressTowards(const Address& peer);

}  // namespace switchyard
