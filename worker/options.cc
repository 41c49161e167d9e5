#include "worker/options.h"

#include <utility>

#include "rpc/address.h"

namespace switchyard {
namespace {

constexpr int kMinFrontTimeoutMs = 1000;

}  // namespace

absl::Status CheckOptions(const WorkerOptions& options) {
  if (options.front.empty()) {
    return absl::InvalidArgumentError("--front=HOST:PORT of the server's worker port is needed");
  }
  SY_RETURN_IF_ERROR(ParseAddress(options.front, "--front").status());
  SY_RETURN_IF_ERROR(ParseHost(options.http_host, "--http_host").status());
  for (const auto& [flag, ms] : {std::pair("--join_timeout_ms", options.join_timeout_ms),
                                 std::pair("--rejoin_timeout_ms", options.rejoin_timeout_ms)}) {
    if (ms < 0) return absl::InvalidArgumentError(absl::StrCat(flag, "=", ms, ": expected 0 or more"));
  }
  SY_RETURN_IF_ERROR(CheckMutualTlsFlags(options.tls));
  if (options.front_timeout_ms != 0 && options.front_timeout_ms < kMinFrontTimeoutMs) {
    return absl::InvalidArgumentError(absl::StrCat("--front_timeout_ms=", options.front_timeout_ms,
                                                   ": expected 0 or at least ", kMinFrontTimeoutMs,
                                                   ", because the server pings five times a second"));
  }
  return options.exchange_host.empty() ? absl::OkStatus() : ExchangeAddress(options).status();
}

absl::StatusOr<std::string> ExchangeAddress(const WorkerOptions& options) {
  if (!options.exchange_host.empty()) return ResolveOwnAddress(options.exchange_host, "--exchange_host");
  SY_ASSIGN_OR_RETURN(const Address front, ParseAddress(options.front, "--front"));
  return OwnAddressTowards(front);
}

}  // namespace switchyard
