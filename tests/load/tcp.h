// Bare TCP connections, for callers that do not follow the protocol.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {

inline constexpr std::string_view kHttp2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// `address` is IPV4:PORT.
absl::StatusOr<UniqueFd> ConnectTcp(const std::string& address);
absl::Status SendAll(int socket, std::string_view bytes);

}  // namespace switchyard
