#pragma once

#include <string>

namespace switchyard {

// Whether `host` reaches, or is reached from, only this machine.
inline bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || host.rfind("127.", 0) == 0;
}

}  // namespace switchyard
