#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>

#include <string>

namespace switchyard {

// Whether `host`, with or without brackets, reaches, or is reached from, only this machine.
inline bool IsLoopback(const std::string& host) {
  const bool has_brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const std::string bare = has_brackets ? host.substr(1, host.size() - 2) : host;
  in_addr v4;
  in6_addr v6;
  if (inet_pton(AF_INET, bare.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  if (inet_pton(AF_INET6, bare.c_str(), &v6) != 1) return bare == "localhost";
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
}

}  // namespace switchyard
